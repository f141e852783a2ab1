"""What the worker gives up before the first call, and what its children are before the agent's code runs in them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from typing import Any

_DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS, _SECCOMP, _CAPBSET_DROP = 4, 36, 38, 22, 24
_AMBIENT, _AMBIENT_CLEAR, _CAPABILITY_VERSION = 47, 4, 0x20080522
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0, pointer: Any = 0) -> int:
    """Call prctl."""
    return int(libc.prctl(option, value, pointer, 0, 0))


def _must(failed: int, what: str) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def lock_down(config: dict[str, Any], seccomp: bytes) -> None:
    """Limit file systems, drop capabilities and user, set resource limits, hide from other processes, filter calls."""
    for path, options in config["remount"]:
        flags = _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        _must(libc.mount(None, path.encode(), None, flags, options.encode()), f"cannot remount {path}")
    for path in config["scratch"]:
        with contextlib.suppress(OSError):
            os.chmod(path, 0o1777)
    for capability in range(64):
        prctl(_CAPBSET_DROP, capability)
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    prctl(_AMBIENT, _AMBIENT_CLEAR)
    _must(libc.capset(struct.pack("=II", _CAPABILITY_VERSION, 0), bytes(24)), "cannot give up the capabilities")
    for name, value in config["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    prctl(_DUMPABLE, 0)  # no process of the same user may look into this one
    prctl(_SUBREAPER, 1)  # orphans come to this process, as they do to the first one of a namespace
    prctl(_NO_NEW_PRIVS, 1)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(seccomp, len(seccomp))
    program = Program(len(seccomp) // 8, ctypes.addressof(buffer))
    _must(prctl(_SECCOMP, 2, ctypes.byref(program)), "the seccomp filter was refused")


def become_agent(config: dict[str, Any]) -> None:
    """In a child: a process like any other, and the first to go when memory is short."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prctl(_DUMPABLE, 1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    for name, value in config["child_rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
