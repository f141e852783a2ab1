"""The processes of the box: which there are, and how to end them for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

OWN = os.getpid()
FIRST = OWN == 1
"""Whether this is the first process of a namespace: then a signal to -1 reaches the box and nothing else."""

_CHILDREN = f"/proc/self/task/{OWN}/children"
_PATIENCE = 20
"""Rounds after which the session goes too: something forks faster than it can be found."""


class Session:
    """The process of the interpreter session, and the pipes to it.

    Attributes:
        pid: Its process, None if there is none.
        code: Where code goes in.
        done: Where exit codes come out.
        output: Where it writes.
    """

    pid: int | None = None
    code: int
    done: int
    output: int

    def end(self) -> None:
        """Kill it, if it is there; what it has started is left to `end_all`."""
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        for fd in (self.code, self.done, self.output):
            os.close(fd)


session = Session()


def read(path: str) -> bytes:
    """A file of the kernel's, with few system calls: every call of a box reads some."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(fd, 1 << 16):
            data += part
        return data
    finally:
        os.close(fd)


def parents() -> dict[int, int]:
    """Process id to its parent's, of every process that is not yet dead."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = read(f"/proc/{name}/stat").rpartition(b") ")[2].split()
            except OSError:
                continue
            if fields[0] not in (b"Z", b"X"):
                found[int(name)] = int(fields[1])
    return found


def below(root: int, table: dict[int, int]) -> set[int]:
    """The processes below ``root``, without itself."""
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in table.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {root}


def children() -> set[int]:
    """The children of this process, orphans of the box among them."""
    try:
        return set(map(int, read(_CHILDREN).split()))
    except OSError:  # a kernel without this file
        return {pid for pid, parent in parents().items() if parent == OWN}


def reap() -> None:
    """Bury the dead; the session ends with its process."""
    with contextlib.suppress(ChildProcessError):
        while done := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if done.si_pid == session.pid:
                session.end()
            else:
                os.waitpid(done.si_pid, 0)


def end_all(spare_session: bool, spare_below: bool = True) -> bool:
    """Kill every process of the box but this one.

    Args:
        spare_session: Not the session.
        spare_below: With ``spare_session``, not its children either.

    Returns:
        Whether nothing is left that should be gone.
    """
    for attempt in range(400):
        if not spare_session or attempt > _PATIENCE:
            session.end()
        if FIRST and session.pid is None:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
        reap()
        spared = {session.pid} - {None}
        if children() <= spared and (spare_below or not spared):
            return True
        table = parents()
        left = below(OWN, table) - spared
        if session.pid is not None and spare_below:
            left -= below(session.pid, table)
        if not left and spared and not spare_below:
            return True
        _kill(left)
        time.sleep(0.0002 if attempt < _PATIENCE else 0.005)
    return False


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def fork() -> int:
    """Fork; where the agent has left no room for another process, make some first."""
    try:
        return os.fork()
    except OSError:
        end_all(spare_session=False)
        return os.fork()


def out_of_memory(files: Iterable[str]) -> int:
    """How many processes of the box the kernel has killed for want of memory."""
    for path in files:
        with contextlib.suppress(OSError):
            count = read(path).partition(b"oom_kill ")[2]
            if count:
                return int(count.split()[0])
    return 0
