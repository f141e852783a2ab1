"""Frames: two lengths (4 bytes each, big endian), a JSON object, and raw bytes; and what a call writes."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from typing import Any

CHUNK = 1 << 16


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd: int, count: int) -> bytes:
    """Read so many bytes; EOFError if the other end is gone."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive(fd: int) -> tuple[dict[str, Any], bytes]:
    """Read a frame."""
    head, blob = struct.unpack(">II", read_exactly(fd, 8))
    return json.loads(read_exactly(fd, head)), read_exactly(fd, blob)


def reply(fd: int, answer: dict[str, Any], blob: bytes = b"") -> None:
    """Write a frame."""
    head = json.dumps(answer).encode()
    write_all(fd, struct.pack(">II", len(head), len(blob)) + head + blob)


class Output:
    """What a call writes to a stream: the first and the last bytes of it, and how many there were."""

    def __init__(self, most: int):
        """Keep ``most`` bytes."""
        self.head, self.tail, self.total = bytearray(), bytearray(), 0
        self.first, self.last = most - most // 2, most // 2

    def add(self, data: bytes) -> None:
        """Take what was written."""
        self.total += len(data)
        room = self.first - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self.tail += data
            if len(self.tail) > self.last:
                del self.tail[: len(self.tail) - self.last]

    def drain(self, fd: int, most: int = 1 << 20) -> None:
        """Take what lies in the pipe now."""
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while most > 0 and (data := os.read(fd, CHUNK)):
                self.add(data)
                most -= len(data)
        os.set_blocking(fd, True)

    def take(self) -> bytes:
        """What was kept, with a line that says how much is missing."""
        cut = self.total - len(self.head) - len(self.tail)
        return bytes(self.head) + (b"\n...[%d bytes cut]...\n" % cut if cut else b"") + bytes(self.tail)
