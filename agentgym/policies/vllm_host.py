"""Keeps a server for its owner, as a program of its own: when the owner is gone, killed or not, so is the server.

    python vllm_host.py FOLDER

Every line of standard input is a command, as a JSON list: it is started in place of the one before, and
``NUMBER CODE`` is written once the command of that number, from 0, has ended. At the end of standard input everything
is ended, and FOLDER, which holds weights and a socket, removed. Needs the standard library only, to start at once.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE_S = 3.0
_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Obey standard input until its end."""
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(caught, lambda *_: None)  # the owner says when to end
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = None
    for number, line in enumerate(sys.stdin):
        _end(server)
        server = subprocess.Popen(
            json.loads(line), stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_die_with_parent
        )
        threading.Thread(target=_report, args=(number, server), daemon=True).start()
    _end(server)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _report(number: int, server: "subprocess.Popen[bytes]") -> None:
    print(number, server.wait(), flush=True)


def _end(server: "subprocess.Popen[bytes] | None") -> None:
    """End a server and all that it started."""
    if server is None:
        return
    server.terminate()
    try:
        server.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    deadline = time.monotonic() + _GRACE_S
    while left := _children():  # what a process leaves behind is handed to its subreaper
        for pid in left:
            if time.monotonic() > deadline or not _cleans_up(pid):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, os.WNOHANG)
        time.sleep(0.01)


def _cleans_up(pid: int) -> bool:
    """Whether a process removes the shared memory of others once they are gone, and then ends."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"resource_tracker" in file.read()
    return False


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


if __name__ == "__main__":
    main()
