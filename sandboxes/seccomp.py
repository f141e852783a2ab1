"""A seccomp filter on top of what the container engine has: what no agent needs and has been seen open.

A classic BPF program, so nothing has to be installed in the box. Calls that are not named here stay allowed: the
engine's own profile, the missing capabilities and the namespaces are the first line.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

from agentgym.sandboxes.base import SandboxUnavailable

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""The flags of clone that make a namespace: user, pid, network, mount, ipc, uts, cgroup."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)

_X86_64 = {
    "socket": 41, "socketpair": 53, "clone": 56, "clone3": 435, "ioctl": 16, "personality": 135,
    "prlimit64": 302, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "sched_setaffinity": 203,
    "setpriority": 141, "ioprio_set": 251,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "unshare": 272, "setns": 308,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "swapon": 167, "swapoff": 168, "reboot": 169, "quotactl": 179,
    "quotactl_fd": 443, "acct": 163, "sethostname": 170, "setdomainname": 171, "settimeofday": 164,
    "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "add_key": 248,
    "request_key": 249, "keyctl": 250, "fanotify_init": 300, "mbind": 237, "set_mempolicy": 238,
    "migrate_pages": 256, "move_pages": 279, "lookup_dcookie": 212, "syslog": 103, "vhangup": 153, "mq_open": 240,
    "iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134, "ustat": 136, "sysfs": 139,
}  # fmt: skip

_AARCH64 = {
    "socket": 198, "socketpair": 199, "clone": 220, "clone3": 435, "ioctl": 29, "personality": 92,
    "prlimit64": 261, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setattr": 274, "sched_setaffinity": 122,
    "setpriority": 140, "ioprio_set": 30,
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_getfd": 438,
    "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "unshare": 97, "setns": 268,
    "name_to_handle_at": 264, "open_by_handle_at": 265, "swapon": 224, "swapoff": 225, "reboot": 142, "quotactl": 60,
    "quotactl_fd": 443, "acct": 89, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
    "clock_settime": 112, "adjtimex": 171, "clock_adjtime": 266, "init_module": 105, "finit_module": 273,
    "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "bpf": 280, "perf_event_open": 241,
    "userfaultfd": 282, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "add_key": 217,
    "request_key": 218, "keyctl": 219, "fanotify_init": 262, "mbind": 235, "set_mempolicy": 237,
    "migrate_pages": 238, "move_pages": 239, "lookup_dcookie": 18, "syslog": 116, "vhangup": 58, "mq_open": 180,
}  # fmt: skip

_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

_AIMED = ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity")
"""Calls whose first argument is a process: refused for process 1, which is the box's own."""

_BY_ARGUMENT = ("socket", "socketpair", "clone", "clone3", "ioctl", "personality", *_AIMED)


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", code, then, otherwise, value)


def _refuse(error: int = errno.EPERM) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument."""
    return _instruction(_LOAD, _ARGUMENTS + 8 * index)


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """Instructions for one system call; they end with a return."""
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _only(index: int, values: tuple[int, ...], error: int) -> list[bytes]:
    """Allow a call if an argument is one of the values."""
    tests = [_instruction(_JUMP_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [_argument(index), *tests, _refuse(error), _instruction(_RETURN, _ALLOW)]


def _not(index: int, values: tuple[int, ...]) -> list[bytes]:
    """Refuse a call if an argument is one of the values."""
    tests = [_instruction(_JUMP_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [_argument(index), *tests, _instruction(_RETURN, _ALLOW), _refuse()]


def number(name: str) -> int:
    """The number of a system call on this machine; KeyError if it is not in the filter."""
    return _MACHINES[platform.machine()][1][name]


def program(machine: str | None = None) -> bytes:
    """The filter for a processor, as the kernel takes it: 8 bytes an instruction.

    Raises:
        SandboxUnavailable: For a processor whose system calls are not listed here.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise SandboxUnavailable(f"no seccomp filter for {machine}: sandboxes run on x86_64 and aarch64")
    architecture, calls = _MACHINES[machine]
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_instruction(_JUMP_AT_LEAST, _X32, 0, 1), _refuse(errno.ENOSYS)]
    families = tuple(int(family) for family in _FAMILIES)
    code += _when(calls["socket"], _only(0, families, errno.EAFNOSUPPORT))
    code += _when(calls["socketpair"], _only(0, families[:1], errno.EAFNOSUPPORT))
    new_namespace = [_argument(0), _instruction(_JUMP_SET, _NEW_NAMESPACES, 0, 1), _refuse()]
    code += _when(calls["clone"], [*new_namespace, _instruction(_RETURN, _ALLOW)])
    code += _when(calls["clone3"], [_refuse(errno.ENOSYS)])  # its flags lie in memory; libc then takes clone
    code += _when(calls["ioctl"], _not(1, (_TIOCSTI, _TIOCLINUX)))
    code += _when(calls["personality"], _only(0, (0, 0xFFFFFFFF), errno.EPERM))
    for name in _AIMED:
        code += _when(calls[name], _not(0, (1,)))
    for name, number in calls.items():
        if name not in _BY_ARGUMENT:
            code += _when(number, [_refuse()])
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])
