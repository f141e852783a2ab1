"""Files of the box, read and written by the worker itself."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import Any

from agentgym.sandboxes.worker.frames import write_all


def _checked(fd: int, path: str) -> int:
    """Whether an open file is a regular one outside the kernel's own file systems."""
    real = os.readlink(f"/proc/self/fd/{fd}")
    if not stat.S_ISREG(os.fstat(fd).st_mode) or real.startswith(("/proc/", "/sys/", "/dev/pts/")):
        os.close(fd)
        raise OSError(22, "not a regular file", path)
    return fd


def put(request: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Write a file."""
    path = request["path"]
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = _checked(os.open(path, flags, 0o600), path)
    try:
        os.ftruncate(fd, 0)
        write_all(fd, blob)
        os.fchmod(fd, request["mode"])
    finally:
        os.close(fd)
    return {}, b""


def get(request: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a file."""
    path = request["path"]
    fd = _checked(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), path)
    try:
        parts, left = [], request["max"] + 1
        while left and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    if not left:
        raise OSError(27, f"longer than {request['max']} bytes", path)
    return {}, b"".join(parts)


def list_folder(request: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
    """List a folder."""
    rows: list[tuple[str, str, int]] = []
    with os.scandir(request["path"]) as entries:
        for entry in entries:
            if len(rows) == request["max"]:
                break
            kind = "other"
            if entry.is_symlink():
                kind = "link"
            elif entry.is_dir():
                kind = "folder"
            elif entry.is_file():
                kind = "file"
            with contextlib.suppress(OSError):
                rows.append((entry.name, kind, entry.stat(follow_symlinks=False).st_size))
    return {"entries": sorted(rows)}, b""


def wipe(folder: str) -> None:
    """Remove all that is in a folder, without following links and without recursion."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    depth = [top]
    while depth:
        here, inner = depth[-1], None
        with os.scandir(here) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=here)
                    continue
                try:
                    os.rmdir(entry.name, dir_fd=here)
                except OSError:
                    os.chmod(entry.name, 0o700, dir_fd=here)
                    inner = entry.name
                    break
        if inner is None:
            os.close(depth.pop())
        elif len(depth) > 200:  # very deep: bring the rest up and go on from there
            os.rename(inner, f"deep-{time.monotonic_ns()}", src_dir_fd=here, dst_dir_fd=top)
            while len(depth) > 1:
                os.close(depth.pop())
        else:
            depth.append(os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here))
