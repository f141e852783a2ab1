"""Docker boxes: what the daemon is asked for, and what happens when it goes away."""

from __future__ import annotations

import threading
import time

import pytest
from agentgym.sandboxes import Limits, SandboxUnavailable, choose, docker, open_sandbox, reaper

from agentgym.errors import ConfigError, SandboxError

pytestmark = pytest.mark.docker


def container_of(box):
    """What the daemon says of this process's only box."""
    with docker.client() as api:
        rows = api.containers(all=True, filters={"label": f"{reaper.LABEL}={reaper.owner()}"})
        assert len(rows) == 1
        return api.inspect_container(rows[0]["Id"])


def test_hardening_by_default(docker_host):
    limits = Limits(memory_mb=256, cpus=0.5, pids=64, open_files=512, workspace_mb=32, tmp_mb=16, inodes=1000)
    with open_sandbox("docker", limits=limits) as box:
        there = container_of(box)
        host, config = there["HostConfig"], there["Config"]
        assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("none", True, False)
        assert (host["CapDrop"], host["SecurityOpt"], host["IpcMode"]) == (["ALL"], ["no-new-privileges"], "none")
        assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (256 << 20, 256 << 20, 65)
        assert (host["NanoCpus"], host["LogConfig"]["Type"]) == (500_000_000, "none")
        assert not host["Binds"]
        assert "size=32m,nr_inodes=1000" in host["Tmpfs"]["/workspace"]
        assert config["User"] == "65534:65534"
        assert box.exec("ulimit -n; ulimit -c").stdout == "512\n0\n"


def test_auto_takes_docker_first(docker_host, monkeypatch):
    assert choose() == "docker"
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    assert choose() == "bubblewrap"
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxUnavailable, match=r"nothing here can run code safely.*unsafe-local"):
        choose()
    assert choose("unsafe-local") == "unsafe-local"


def test_an_image_that_is_not_there(docker_host):
    with pytest.raises(SandboxUnavailable, match="agentgym sandbox build"):
        open_sandbox("docker", image="no-such-image:1")
    with pytest.raises(ConfigError, match="did you mean docker"):
        open_sandbox("dokcer")


def test_an_image_without_python_says_so(docker_host):
    with docker.client() as api:
        api.import_image_from_data(_empty_tar(), repository="agentgym-test-empty", tag="1")
    try:
        with pytest.raises(SandboxError, match="python3"):
            open_sandbox("docker", image="agentgym-test-empty:1")
        with docker.client() as api:
            assert api.containers(all=True, filters={"label": f"{reaper.LABEL}={reaper.owner()}"}) == []
    finally:
        with docker.client() as api:
            api.remove_image("agentgym-test-empty:1", force=True)


def _empty_tar() -> bytes:
    import io
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        folder = tarfile.TarInfo("workspace")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    return data.getvalue()


def test_a_container_that_is_removed_under_the_box(docker_host):
    box = open_sandbox("docker")
    errors = []

    def call():
        try:
            box.exec("sleep 60")
        except SandboxError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    with docker.client() as api:
        api.remove_container(container_of(box)["Id"], force=True)
    thread.join(10)
    assert len(errors) == 1
    with pytest.raises(SandboxError, match="has ended"):
        box.exec("true")
    assert not box.alive


@pytest.mark.parametrize("how", ["between calls", "in mid-call"])
def test_a_box_outlives_its_daemon(docker_daemon, how):
    with open_sandbox("docker") as box:
        box.python("x = 41")
        box.put("file", "kept")
        if how == "in mid-call":
            errors = []

            def call():
                try:
                    box.python("import time; time.sleep(2)")
                except SandboxError as error:
                    errors.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            time.sleep(0.5)
            docker_daemon.kill()
            thread.join(10)
            assert len(errors) == 1
            assert "broke in mid-call" in str(errors[0])
            assert box.alive
        else:
            docker_daemon.kill()
        threading.Timer(0.5, docker_daemon.start).start()
        assert box.python("x + 1").stdout == "42\n"
        assert box.get("file") == b"kept"


def test_no_daemon_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    started = time.monotonic()
    with pytest.raises(SandboxUnavailable, match=r"no docker daemon answers at unix:///nonexistent\.sock"):
        open_sandbox("docker")
    assert time.monotonic() - started < 5
    assert "no docker daemon" in docker.available()
