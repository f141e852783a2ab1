"""``agentgym sandbox`` as a user types it, with a real daemon and real bubblewrap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from agentgym.sandboxes import docker, image, open_sandbox, reaper

from agentgym import cli

PROGRAM = [sys.executable, "-m", "agentgym.cli", "sandbox"]


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bwrap)]
)
def backend(request):
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    return request.param


def sandbox(*arguments, stdin=b"", **environment):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def ask(capsys, *arguments):
    """Exit code and standard output of a command of this process."""
    code = cli.main(["sandbox", *arguments])
    return code, capsys.readouterr().out


def test_streams_and_exit_code_pass_through(backend):
    script = "cat; printf 'é%s' \"$2\"; echo no >&2; exit 7"
    done = sandbox("run", "--backend", backend, "--", "bash", "-c", script, "--", "a", "-- b", stdin=b"in\r\n\0")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\r\n\0\xc3\xa9-- b", b"no\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--timeout", "0.5", "--", "sleep", "60"], 124, "ended after 0.5 s"),
        (
            ["--memory", "64", "--", "python3", "-c", "x = b'a' * (300 << 20)"],
            137,
            "ended at the memory limit of 64 MiB",
        ),
        (["--", "yes"], 153, "ended at the output limit of 64 MiB"),
    ],
)
def test_limits_have_exit_codes_and_say_why(backend, arguments, code, said):
    done = sandbox("run", "--backend", backend, *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.decode().splitlines()[-1] == f"agentgym: {said}"


def test_other_ends_of_a_program(backend):
    assert sandbox("run", "--backend", backend, "--", "bash", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    done = sandbox("run", "--backend", backend, "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program" in done.stderr


@pytest.mark.docker
def test_auto_takes_docker(docker_host):
    done = sandbox("run", "--", "cat", "/proc/1/cgroup", "/proc/self/mountinfo")
    assert done.returncode == 0
    assert b"overlay" in done.stdout


@pytest.mark.bwrap
def test_auto_takes_bubblewrap_when_no_daemon_answers(bubblewrap, tmp_path):
    host = f"unix://{tmp_path}/none.sock"
    done = sandbox("run", "--", "sh", "-c", "id -u; stat -f -c %T /", DOCKER_HOST=host)
    assert done.stdout.splitlines()[0] == b"65534"
    assert b"overlay" not in done.stdout
    done = sandbox("run", "--backend", "docker", "--", "true", DOCKER_HOST=host)
    assert done.returncode == 125
    assert done.stderr.decode().count("\n") == 1
    assert "DOCKER_HOST" in done.stderr.decode()


def test_never_unprotected_unless_told(tmp_path):
    nothing = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PATH": str(tmp_path)}
    done = sandbox("run", "--", "true", **nothing)
    assert done.returncode == 125
    assert "unsafe-local" in done.stderr.decode()
    done = sandbox("run", "--backend", "unsafe-local", "--", "/bin/echo", "x", **nothing)
    assert (done.returncode, done.stdout) == (0, b"x\n")


@pytest.mark.bwrap
def test_output_and_input_are_bounded_by_the_memory(bubblewrap):
    run = ["run", "--backend", "bubblewrap", "--memory", "64", "--"]
    done = sandbox(*run, "head", "-c", 12 << 20, "/dev/zero")
    assert done.returncode == 0
    assert 8 << 20 < len(done.stdout) < (8 << 20) + 100
    assert done.stderr == b"agentgym: the middle of the output was cut out: over 8 MiB\n"
    done = sandbox(*run, "wc", "-c", stdin=bytes(16 << 20))
    assert done.stdout == b"%d\n" % (16 << 20)
    done = sandbox(*run, "wc", "-c", stdin=bytes((16 << 20) + 1))
    assert done.returncode == 2
    assert done.stderr == b"agentgym: error: standard input is over 16 MiB, the most that --memory 64 allows\n"


@pytest.mark.bwrap
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ACTION; see agentgym sandbox --help"),
        (["run"], "ARGV; see agentgym sandbox run --help"),
        (["run", "--backend", "dokcer", "--", "true"], "unknown sandbox backend 'dokcer': did you mean docker?"),
        (["run", "--backend", "bubblewrap", "--image", "x", "--", "true"], "unknown sandbox image 'x'"),
        (["run", "--memory", "3", "--", "true"], "sandbox limit memory_mb is 3: it must be"),
        (["run", "--backend", "bubblewrap", "--timeout", "0", "--", "true"], "timeout is 0.0: it must be above 0 s"),
        (["build", "--image", "huge"], "--image"),
    ],
)
def test_bad_input_is_one_line(bubblewrap, arguments, said):
    done = sandbox(*arguments)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("agentgym: error: ")
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_interrupted(backend):
    command = [*PROGRAM, "run", "--backend", backend, "--", "sleep", "60"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not theirs(backend, process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert theirs(backend, process.pid)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == b"agentgym: interrupted\n"
    assert not theirs(backend, process.pid)


def theirs(backend, owner):
    """The boxes that a process has."""
    from agentgym.sandboxes import running

    if backend == "bubblewrap":
        return [box for box in running.processes() if box.owner == owner]
    with docker.client() as api:
        return [box for box in running.containers(api) if box.owner == owner]


@pytest.mark.docker
@pytest.mark.bwrap
def test_status_and_doctor(docker_host, bubblewrap, capsys):
    with open_sandbox("docker"), open_sandbox("bubblewrap", image="data"), open_sandbox("unsafe-local"):
        code, out = ask(capsys, "status", "--json")
        report = json.loads(out)
        assert code == 0
        assert report["auto"] == "docker"
        assert report["backends"] == [
            {"name": "docker", "usable": True, "reason": ""},
            {"name": "bubblewrap", "usable": True, "reason": ""},
        ]
        assert [i["name"] for i in report["images"]] == [image.BASE_IMAGE, image.DATA_IMAGE]
        assert all(20 < i["docker_mb"] < 400 for i in report["images"])
        assert report["images"][1]["folder"] == str(image.rootfs_folder("data"))
        mine = [box for box in report["boxes"] if box["owner"] == os.getpid()]
        assert [box["backend"] for box in sorted(mine, key=lambda box: box["backend"])] == [
            "bubblewrap",
            "docker",
            "unsafe-local",
        ]
        assert {box["image"] for box in mine} == {image.BASE_IMAGE, str(image.rootfs_folder("data")), ""}
        assert not any(box["owner_dead"] for box in mine)
        code, out = ask(capsys, "status")
        assert f"boxes       3 of process {os.getpid()} " in out
    report = json.loads(ask(capsys, "status", "--json")[1])
    assert not [box for box in report["boxes"] if box["owner"] == os.getpid()]

    code, out = ask(capsys, "doctor", "--json")
    found = {f["name"]: f for f in json.loads(out)["findings"]}
    assert code == 0
    for name in ("docker sdk", "docker daemon", "docker limits", "docker base", "docker data", "bubblewrap", "auto"):
        assert found[name]["status"] == "ok", found[name]
    assert found["folder base"]["status"] == found["folder data"]["status"] == "ok"


def test_status_and_doctor_where_there_is_nothing(tmp_path):
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock", "PATH": str(tmp_path), "AGENTGYM_CACHE": str(tmp_path)}
    done = sandbox("status", "--json", **environment)
    report = json.loads(done.stdout)
    assert report["auto"] is None
    assert not any(b["usable"] for b in report["backends"])
    assert all(b["reason"] for b in report["backends"])
    assert [(i["docker_mb"], i["folder"]) for i in report["images"]] == [(None, None)] * 2
    done = sandbox("doctor", "--json", **environment)
    assert done.returncode == 1
    found = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["auto"]["status"] == "broken"
    assert found["bubblewrap"]["fix"] == "apt-get install bubblewrap"
    assert found["folder data"]["fix"] == "agentgym sandbox build --offline --image data"
    assert all(bool(f["fix"]) == (f["status"] != "ok") for f in found.values())


@pytest.mark.docker
def test_prune_removes_what_a_dead_owner_left_and_nothing_else(docker_host, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))  # no folder of the user's own is removed
    with subprocess.Popen(["true"]) as dead:
        signed = reaper.owner().rsplit(".", 2)[0] + f".{dead.pid}.1"
    with open_sandbox("docker") as box, docker.client() as api:
        left = api.create_container(image.BASE_IMAGE, ["true"], labels={reaper.LABEL: signed})
        name = api.inspect_container(left)["Name"].lstrip("/")
        code, out = ask(capsys, "prune")
        assert code == 0
        assert f"removed {name}\n" in out
        box.ping()
    assert ask(capsys, "prune") == (0, "nothing to remove\n")


@pytest.mark.docker
@pytest.mark.bwrap
def test_build_offline(docker_host, bubblewrap, capsys):
    """What is there already; test_image.py makes images anew."""
    code, out = ask(capsys, "build", "--offline", "--image", "base")
    assert code == 0
    with docker.client() as api:
        assert out.splitlines() == [
            f"{image.BASE_IMAGE}  Docker: {api.inspect_image(image.BASE_IMAGE)['Id']}",
            f"{image.BASE_IMAGE}  folder for bubblewrap: {image.rootfs_folder('base')}",
        ]


@pytest.mark.bwrap
def test_build_offline_without_a_daemon(bubblewrap, tmp_path):
    host = f"unix://{tmp_path}/none.sock"
    done = sandbox("build", "--offline", "--image", "base", DOCKER_HOST=host)
    assert done.returncode == 0
    assert b"not imported into Docker" in done.stderr
    done = sandbox("build", "--image", "base", DOCKER_HOST=host)
    assert done.returncode == 2
    assert b"no docker daemon answers" in done.stderr
