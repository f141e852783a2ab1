"""The private daemon: it starts twice, survives a crash's traces, and goes with all it has, however its owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from agentgym.sandboxes import docker, image
from helpers_docker import SCRIPT

pytestmark = pytest.mark.docker

OWNER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from helpers_docker import Daemon
daemon = Daemon()
daemon.start()
print(daemon.folder, flush=True)
time.sleep(600)
"""


def processes_in(folder):
    """The processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(folder).encode() in word for word in argv):
            found.append(argv)
    return found


def sleeper(api):
    """A container that runs."""
    config = api.create_host_config(network_mode="none")
    container = api.create_container(image.BASE_IMAGE, ["sleep", "600"], host_config=config)["Id"]
    api.start(container)
    return container


def test_containers_outlive_a_killed_daemon_and_another_one_takes_them_over(docker_daemon):
    with docker.client() as api:
        container = sleeper(api)
    docker_daemon.kill()
    assert "answer" in docker.available()
    docker_daemon.start()
    docker_daemon.start()  # of one that runs
    with docker.client() as api:
        assert api.inspect_container(container)["State"]["Running"]


def test_stop_removes_what_a_killed_daemon_left(docker_daemon):
    with docker.client() as api:
        container = sleeper(api)
        process = api.inspect_container(container)["State"]["Pid"]
    docker_daemon.kill()
    subprocess.run([SCRIPT, "stop", docker_daemon.folder], check=True, capture_output=True, timeout=60)
    assert not Path(f"/proc/{process}").exists()
    assert not any(
        "dockerd" in str(argv[0]) or "containerd" in str(argv[0]) for argv in processes_in(docker_daemon.folder)
    )
    subprocess.run([SCRIPT, "stop", docker_daemon.folder], check=True, capture_output=True, timeout=60)  # once more


def test_it_goes_when_its_owner_is_killed(docker_daemon):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(Path(__file__).parents[1])], stdout=subprocess.PIPE, text=True
    ) as owner:
        folder = Path(owner.stdout.readline().strip())
        assert (folder / "docker.sock").exists()
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
    assert not processes_in(folder)


@pytest.mark.parametrize(("ci", "outcome"), [("1", "errors=2 skipped=0"), ("", "errors=0 skipped=2")])
def test_where_they_must_run_their_absence_is_a_failure(ci, outcome, tmp_path):
    """Of the tests that need Docker or bubblewrap, where neither works."""
    for name in ("dockerd", "bwrap"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "CI": ci, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["DOCKER_HOST"] = f"unix://{tmp_path}/none.sock"
    names = ("test_sandbox_cli.py::test_auto_takes_docker", "test_image.py::test_what_is_in_the_folder")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={tmp_path}/report.xml"]
    here = Path(__file__).parent
    done = subprocess.run([*command, *(str(here / name) for name in names)], env=environment, capture_output=True)
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()[0].attrib
    assert f"errors={suite['errors']} skipped={suite['skipped']}" == outcome
    assert done.returncode == (1 if ci else 0)


@pytest.mark.parametrize("arguments", [[], ["start"], ["restart", "x"]])
def test_wrong_arguments(arguments, tmp_path):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert not list(tmp_path.iterdir())
