"""Removes what a killed owner leaves behind: a small process that sees its owner's end, and a sweep by label.

Run as a program, it needs nothing but the standard library until its owner is gone; then also the docker package.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

LABEL = "agentgym.owner"
CGROUPS = "/sys/fs/cgroup"
_SWEEPS = (0.0, 0.3, 1.0, 3.0, 6.0)
"""Seconds between sweeps after the owner's end: what the daemon was asked for may still come to be."""


def _stat(pid: int) -> tuple[str, str]:
    """State and start time of a process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(") ")[2].split()
    return fields[0], fields[19]


@functools.cache
def _place() -> str:
    """This boot of this machine, and this namespace of process ids."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def owner() -> str:
    """What this process signs its boxes with."""
    return f"{_place()}.{os.getpid()}.{_stat(os.getpid())[1]}"


def is_dead(signed: str) -> bool:
    """Whether the process that signed so is known to be gone; one of another machine never is."""
    place, _, rest = signed.rpartition(".")[0].rpartition(".")
    if place != _place() or not rest.isdigit():
        return False
    try:
        state, started = _stat(int(rest))
    except OSError:
        return True
    return started != signed.rpartition(".")[2] or state in ("Z", "X")


def prune_containers(api: Any, dead: str | None = None) -> list[str]:
    """Remove the containers of owners that are gone; ``dead`` counts as gone.

    Returns:
        The names of what was removed.
    """
    removed = []
    for row in api.containers(all=True, filters={"label": LABEL}):
        signed = row["Labels"][LABEL]
        if signed == dead or is_dead(signed):
            with contextlib.suppress(Exception):  # it is going already, or the daemon is: the next sweep looks again
                api.remove_container(row["Id"], force=True, v=True)
                removed.append(row["Names"][0].lstrip("/") if row["Names"] else row["Id"][:12])
    return removed


def prune_cgroups(dead: str | None = None) -> list[str]:
    """Remove the control groups of owners that are gone."""
    removed = []
    for path in glob.glob(f"{CGROUPS}/agentgym-*") + glob.glob(f"{CGROUPS}/*/agentgym-*"):
        signed = os.path.basename(path).removeprefix("agentgym-").rpartition("-")[0]
        if signed == dead or is_dead(signed):
            with contextlib.suppress(OSError):
                os.rmdir(path)
                removed.append(path)
    return removed


class Watch:
    """The owner's handle on its reaper process, which lives while there is something to watch."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._told: set[str] = set()
        self._swept: set[str] = set()

    def __enter__(self) -> Watch:
        with self._lock:
            self._users += 1
            if self._process is None or self._process.poll() is not None:
                self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._process is not None:
                self._end(self._process)
                self._process = None

    def docker(self, daemon: dict[str, str]) -> None:
        """Watch a docker daemon too; the first time, also remove what others have left there."""
        line = json.dumps(daemon)
        with self._lock:
            if self._process is None or line in self._told:
                return
            self._told.add(line)
            self._tell({"docker": daemon, "sweep": line not in self._swept})
            self._swept.add(line)

    def _start(self) -> None:
        self._told = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps({"owner": owner(), "path": sys.path})],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._tell({"done": True})
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)

    def forked(self) -> None:
        """In a forked process: the reaper is the parent's."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                os.close(self._process.stdin.fileno())
        self._begin()


watch = Watch()
os.register_at_fork(after_in_child=watch.forked)


def main(given: dict[str, Any]) -> None:
    """Wait for the owner's end, then sweep."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    daemons: list[dict[str, str]] = []
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("done"):
            return
        daemons.append(message["docker"])
        if message["sweep"]:
            _sweep(given, daemons[-1:], None)
    prune_cgroups()
    for pause in _SWEEPS:
        time.sleep(pause)
        _sweep(given, daemons, given["owner"])
        prune_cgroups(given["owner"])


def _sweep(given: dict[str, Any], daemons: list[dict[str, str]], dead: str | None) -> None:
    for daemon in daemons:
        with contextlib.suppress(Exception):  # a daemon that is away: the next sweep asks again
            sys.path[:] = given["path"]
            import docker

            settings = docker.utils.kwargs_from_env(environment=daemon)
            with contextlib.closing(docker.APIClient(**settings, version="auto", timeout=20)) as api:
                prune_containers(api, dead)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
