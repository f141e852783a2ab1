"""The two directions of a stream to the worker in a box."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import Any, Protocol


class Link(Protocol):
    """The two directions of a stream to a worker."""

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of it; OSError or TimeoutError if that fails."""
        ...

    def receive(self, deadline: float) -> bytes:
        """Wait for bytes; b"" at the end, OSError or TimeoutError if it fails."""
        ...

    def ended(self) -> bool:
        """Whether the other end is known to be gone, while nothing is expected from it."""
        ...

    def said(self) -> bytes:
        """The last bytes of the worker's standard error, where it says why it cannot start."""
        ...

    def close(self) -> None:
        """Close it."""
        ...

    def forget(self) -> None:
        """Close what a forked process has inherited, without telling the other end."""
        ...


class SocketLink:
    """A stream socket."""

    def __init__(self, sock: socket.socket, errors: int | None = None):
        """Take over the socket, and the descriptor of a file that takes the worker's standard error."""
        self.sock = sock
        self.errors = errors

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            self._wait(deadline)
            view = view[self.sock.send(view) :]

    def receive(self, deadline: float) -> bytes:
        """Wait for bytes."""
        self._wait(deadline)
        return self.sock.recv(1 << 18)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)

    def ended(self) -> bool:
        """Whether there is an end of stream to be read."""
        try:
            if not select.select([self.sock], [], [], 0)[0]:
                return False
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):  # closed; a TLS socket cannot peek, and the call will tell
            return self.sock.fileno() < 0

    def said(self) -> bytes:
        """What the worker wrote to the file."""
        return b"" if self.errors is None else os.pread(self.errors, 4096, 0)

    def close(self) -> None:
        """Close it; a thread that waits at it wakes up."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.forget()

    def forget(self) -> None:
        """Close this process's copy."""
        self.sock.close()
        if self.errors is not None:
            os.close(self.errors)
            self.errors = None


class MultiplexedLink(SocketLink):
    """Docker's attached stream, in which standard output and standard error take turns in frames of their own."""

    def __init__(self, sock: socket.socket, keep: Any):
        """Take over the socket, and the stream that the client made of it, which keeps it open too."""
        super().__init__(sock)
        self._raw, self._stderr, self._keep = bytearray(), bytearray(), keep

    def forget(self) -> None:
        """Close this process's copy."""
        super().forget()
        self._keep.close()

    def said(self) -> bytes:
        """The last bytes of standard error."""
        return bytes(self._stderr)

    def receive(self, deadline: float) -> bytes:
        """Wait for bytes of standard output; standard error is kept aside, its last 4096 bytes."""
        output = bytearray()
        while not output:
            data = super().receive(deadline)
            if not data:
                return b""
            self._raw += data
            while len(self._raw) >= 8:
                kind, length = struct.unpack(">BxxxI", self._raw[:8])
                if len(self._raw) < 8 + length:
                    break
                if kind == 1:
                    output += self._raw[8 : 8 + length]
                else:
                    self._stderr += self._raw[8 : 8 + length]
                    del self._stderr[:-4096]
                del self._raw[: 8 + length]
        return bytes(output)
