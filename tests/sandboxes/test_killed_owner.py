"""An owner that is killed leaves nothing behind: no container, no process, no control group, no file."""

from __future__ import annotations

import glob
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from agentgym.sandboxes import docker, reaper

OWNER = """
import sys, threading
from agentgym.sandboxes import open_sandbox

def work():
    while True:
        box = open_sandbox(sys.argv[1])
        for _ in range(3):
            box.python("x = 1")
            box.exec(f"sleep 0.05; (sleep {sys.argv[2]} &) ; setsid sleep {sys.argv[2]} & echo hi")
            box.put("file", bytes(100_000))
            box.reset()
        box.close()

print("ready", flush=True)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
ROUNDS, AT_ONCE = 10, 5
SECONDS, MARK = str(1000 + os.getpid() / 1e7), f"AGENTGYM_TEST_{os.getpid()}"  # these owners' alone


def left_behind(owners: set[int]) -> list[str]:
    """What is still there of owners that are gone."""
    found = []
    with docker.client() as api:
        rows = api.containers(all=True, filters={"label": reaper.LABEL})
        found += [f"container {row['Labels'][reaper.LABEL]}" for row in rows]
    found += glob.glob(f"{reaper.CGROUPS}/agentgym-*") + glob.glob(f"{reaper.CGROUPS}/*/agentgym-*")
    found = [name for name in found if any(f".{pid}." in name for pid in owners)]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                argv = file.read()
            with open(path.replace("cmdline", "environ"), "rb") as file:
                environ = file.read()
        except OSError:
            continue
        if f"sleep\0{SECONDS}".encode() in argv or (b"bwrap" in argv and f"{MARK}=1".encode() in environ):
            found.append(f"process {path}")
    return found


@pytest.mark.docker
@pytest.mark.bwrap
@pytest.mark.parametrize("backend", ["docker", "bubblewrap"])
def test_nothing_is_left_after_fifty_kills(backend, docker_host, bubblewrap):
    draw = random.Random(backend)
    argv, marked = [sys.executable, "-c", OWNER, backend, SECONDS], {**os.environ, MARK: "1"}
    killed: set[int] = set()
    for _ in range(ROUNDS):
        owners = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=marked) for _ in range(AT_ONCE)]
        for owner in owners:
            assert owner.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        while not any("process" in name for name in left_behind(set())):
            assert time.monotonic() < deadline, "what is looked for is not seen while it is there"
        for owner in owners:
            time.sleep(draw.uniform(0, 0.35))
            owner.send_signal(signal.SIGKILL)
        for owner in owners:
            owner.wait()
            owner.stdout.close()
            killed.add(owner.pid)
    deadline = time.monotonic() + 20
    while (left := left_behind(killed)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert len(killed) == ROUNDS * AT_ONCE


@pytest.mark.bwrap
def test_an_owner_that_ends_without_closing(bubblewrap):
    code = "from agentgym.sandboxes import open_sandbox; box = open_sandbox('bubblewrap'); box.python('1')"
    owner = subprocess.Popen([sys.executable, "-c", code])
    assert owner.wait(30) == 0
    assert left_behind_of_bubblewrap(owner.pid) == []


def left_behind_of_bubblewrap(pid: int) -> list[str]:
    return glob.glob(f"{reaper.CGROUPS}/*/agentgym-*.{pid}.*")


@pytest.mark.docker
def test_prune_removes_what_dead_owners_left_and_nothing_else(docker_host):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    started = reaper._stat(gone.pid)[1]
    gone.wait()
    place = reaper.owner().rpartition(".")[0].rpartition(".")[0]
    labels = {
        "dead": f"{place}.{gone.pid}.{started}",
        "other start": f"{place}.1.12345",
        "alive": reaper.owner(),
        "elsewhere": f"another-machine.1.{gone.pid}.{started}",
    }
    with docker.client() as api:
        made = {
            name: api.create_container("agentgym-sandbox:base", "true", labels={reaper.LABEL: label})["Id"]
            for name, label in labels.items()
        }
        try:
            docker.prune()
            there = {row["Id"] for row in api.containers(all=True)}
            assert {name for name, id_ in made.items() if id_ in there} == {"alive", "elsewhere"}
        finally:
            for id_ in made.values():
                if id_ in {row["Id"] for row in api.containers(all=True)}:
                    api.remove_container(id_, force=True)


def test_owners_of_other_machines_are_never_taken_for_dead():
    assert not reaper.is_dead(reaper.owner())
    assert not reaper.is_dead("nonsense")
    assert not reaper.is_dead("boot.1.2.3")
