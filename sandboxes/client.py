"""The owner's side of a box: calls to the worker over one stream. Backends differ in how they start it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import secrets
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from agentgym.sandboxes import seccomp
from agentgym.sandboxes.base import Entry, Limits, Result, SandboxLost
from agentgym.sandboxes.link import Link

from agentgym.errors import ConfigError, SandboxError

_GRACE_S = 5.0
"""Seconds beyond its deadline after which a call that has not answered is a broken box."""
_OPEN_S = 60.0
_LONGEST_S = 24 * 3600.0
_BIGGEST = 64 << 20


_MODULES = ("frames", "lockdown", "processes", "interpreter", "files", "calls", "main")
_PACKAGE = "agentgym.sandboxes.worker"
_START = """import sys, types
for name, source in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    parent, _, short = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], short, module)
sys.modules["{package}.main"].Worker().serve()
"""


@functools.cache
def _worker_source() -> str:
    """The worker as one text: its modules, made by hand, because the box has no files of this package."""
    names = _PACKAGE.split(".")
    sources = [(".".join(names[: i + 1]), "") for i in range(len(names))]
    for module in _MODULES:
        text = resources.files(_PACKAGE).joinpath(f"{module}.py").read_text()
        sources.append((f"{_PACKAGE}.{module}", text))
    return _START.format(sources=sources, package=_PACKAGE)


def worker_argv(python: str = "python3") -> list[str]:
    """The command that runs the worker in a box."""
    return [python, "-I", "-c", _worker_source()]


@dataclass(frozen=True)
class Setup:
    """What the worker is told first.

    Attributes:
        workspace: Its working directory.
        scratch: Folders that a reset empties.
        uid: User to become, None to stay.
        remount: Path and options of file systems that are limited before privileges are given up.
        rlimits: Resource limits of every process, by name.
        child_rlimits: Resource limits of the agent's processes alone.
        oom_files: Where the kernel counts processes killed for want of memory.
        preload: Modules imported before the first call, so that fresh interpreters have them at once.
        remove: Whether the worker removes the workspace when its owner is gone.
    """

    workspace: str
    scratch: tuple[str, ...]
    uid: int | None = None
    remount: tuple[tuple[str, str], ...] = ()
    rlimits: tuple[tuple[str, int], ...] = ()
    child_rlimits: tuple[tuple[str, int], ...] = ()
    oom_files: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    remove: bool = False

    def config(self) -> dict[str, Any]:
        """As the worker reads it."""
        return {**vars(self), "rlimits": dict(self.rlimits), "child_rlimits": dict(self.child_rlimits)}


_boxes: weakref.WeakSet[Box] = weakref.WeakSet()


def _after_fork() -> None:
    """A box belongs to the process that opened it: a forked one must not keep its stream open."""
    for box in list(_boxes):
        box._forked()


def _at_exit() -> None:
    for box in list(_boxes):
        box._link.close()  # all of them begin to end at once
    for box in list(_boxes):
        box.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


class Box:
    """A sandbox that a worker serves; see `agentgym.sandboxes.base.Sandbox` for its methods."""

    def __init__(
        self,
        backend: str,
        guarantees: frozenset[str],
        setup: Setup,
        limits: Limits,
        link: Link,
        remove: Callable[[], None],
        relink: Callable[[], Link | None] | None = None,
    ):
        """Greet the worker at the other end of the link.

        Args:
            backend: Name of the backend.
            guarantees: What it promises.
            setup: What the worker is told.
            limits: What the box may use.
            link: The stream.
            remove: Removes what the backend has started; called once.
            relink: Makes a new link to a worker that lives on, None if it does not.

        Raises:
            SandboxError: If the worker does not come up; what was started is removed then.
        """
        self.backend, self.guarantees, self.limits, self.workspace = backend, guarantees, limits, setup.workspace
        self._setup, self._link, self._remove, self._relink = setup, link, remove, relink
        self._lock, self._sending, self._closing = threading.Lock(), threading.Lock(), threading.Lock()
        self._buffer = bytearray()
        self._number = 0
        self._running: int | None = None
        self._connected, self._closed, self._reason = True, False, "it is closed"
        _boxes.add(self)
        try:
            self._greet(_OPEN_S)
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------------------------------------------- calls

    def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 30.0,
        max_output: int = 65536,
    ) -> Result:
        """Run a program."""
        argv = _text(command) if isinstance(command, str) else [_text(str(word)) for word in command]
        if not argv or any("\0" in word for word in ([argv] if isinstance(argv, str) else argv)):
            raise ConfigError("a command of a sandbox must not be empty or hold a NUL character")
        request = {"op": "run", "argv": argv, "cwd": cwd, "env": env}
        return self._run(request, _bytes(stdin), timeout, max_output)

    def python(self, code: str, *, fresh: bool = False, timeout: float = 30.0, max_output: int = 65536) -> Result:
        """Run Python code."""
        return self._run({"op": "run" if fresh else "interact"}, _bytes(code), timeout, max_output)

    def put(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Write a file."""
        data = _bytes(data)
        if len(data) > _BIGGEST:
            raise ConfigError(f"put {path}: {len(data)} bytes, and a file may have at most {_BIGGEST}")
        self._file_call({"op": "put", "path": _path(path), "mode": mode}, data)

    def get(self, path: str, max_bytes: int = 16 << 20) -> bytes:
        """Read a file."""
        if not 0 < max_bytes <= _BIGGEST:
            raise ConfigError(f"get: max_bytes is {max_bytes}: it must be 1 to {_BIGGEST}")
        return self._file_call({"op": "get", "path": _path(path), "max": max_bytes})[1]

    def list(self, path: str = ".") -> list[Entry]:
        """List a folder."""
        answer, _ = self._file_call({"op": "list", "path": _path(path), "max": 10_000})
        return [Entry(*row) for row in answer["entries"]]

    def stop(self) -> None:
        """End every process."""
        self._must({"op": "stop"})

    def reset(self) -> None:
        """Back to the beginning."""
        self._must({"op": "reset"})

    def ping(self) -> None:
        """Raise unless it answers."""
        self._must({"op": "ping"})

    def cancel(self) -> None:
        """End the running call."""
        number = self._running
        if number is not None:
            try:
                self._send({"op": "cancel", "id": number}, b"", time.monotonic() + _GRACE_S)
            except OSError:
                self._connected = False

    @property
    def alive(self) -> bool:
        """Whether it can be used, as far as is known."""
        return not self._closed

    def close(self) -> None:
        """Remove the box."""
        self._lose("it is closed")

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    # ---------------------------------------------------------------------------------------------------- inside

    def _run(self, request: dict[str, Any], blob: bytes, timeout: float, max_output: int) -> Result:
        if not 0 < timeout <= _LONGEST_S:
            raise ConfigError(f"sandbox timeout is {timeout}: it must be above 0 s and at most a day")
        if len(blob) > _BIGGEST:
            raise ConfigError(f"a call of a sandbox takes at most {_BIGGEST} bytes of input or code, not {len(blob)}")
        if not 0 <= max_output <= _BIGGEST:
            raise ConfigError(f"sandbox max_output is {max_output}: it must be 0 to {_BIGGEST}")
        request |= {"timeout": timeout, "max_output": max_output, "flood": self.limits.flood_mb << 20}
        answer, data = self._ask(request, blob, timeout)
        if "error" in answer or not answer["clean"]:
            self._lose(answer.get("error", "it could not be cleared of the agent's processes"))
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        cut = answer["out"]
        return Result(
            status=answer["status"],
            exit_code=answer["exit"],
            stdout=data[:cut].decode(errors="replace"),
            stderr=data[cut:].decode(errors="replace"),
            duration=answer["duration"],
            output_bytes=answer["bytes"],
            session_lost=bool(answer["lost"]),
        )

    def _must(self, request: dict[str, Any]) -> None:
        answer, _ = self._ask(request, b"", _GRACE_S)
        if "error" in answer:
            self._lose(answer["error"])
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")

    def _file_call(self, request: dict[str, Any], blob: bytes = b"") -> tuple[dict[str, Any], bytes]:
        answer, data = self._ask(request, blob, 30.0)
        if "error" in answer:
            raise OSError(answer["errno"], answer["error"], request["path"])
        return answer, data

    def _ask(self, request: dict[str, Any], blob: bytes, timeout: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer."""
        with self._lock:
            if self._closed:
                raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
            if self._relink is not None and self._connected and self._link.ended():
                self._connected = False
                self._link.close()
            if not self._connected:
                self._reconnect()
            self._number += 1
            number = self._number
            deadline = time.monotonic() + timeout + _GRACE_S
            self._running = number
            try:
                self._send({**request, "id": number}, blob, deadline)
                answer, data = self._answer(number, deadline)
            except TimeoutError:
                self._lose(f"no answer within {timeout + _GRACE_S:.0f} s")
                raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}") from None
            except OSError as error:
                raise self._broken(error) from error
            except ValueError as error:  # not a frame of the worker's
                self._lose(f"it answers nonsense: {error}")
                raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}") from error
            except BaseException:  # Ctrl-C: the call must not run on, nor its answer be taken for the next one's
                self._abandon(number)
                raise
            finally:
                self._running = None
        if "bug" in answer:
            self._lose(answer["bug"])
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        return answer, data

    def _abandon(self, number: int) -> None:
        deadline = time.monotonic() + 2.0
        try:
            self._send({"op": "cancel", "id": number}, b"", deadline)
            self._answer(number, deadline)
        except (OSError, ValueError):
            self._lose("a call was interrupted and did not end")

    def _broken(self, error: OSError) -> SandboxError:
        """The stream broke: with a backend that can link again, the box may live on."""
        if self._closed:
            return SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        self._connected = False
        self._link.close()
        if self._relink is None:
            self._lose("its worker has ended")
            return SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        return SandboxError(
            f"the connection to the {self.backend} sandbox broke in mid-call: {error or 'end of stream'}"
        )

    def _reconnect(self) -> None:
        assert self._relink is not None
        try:
            link = self._relink()
        except Exception as error:
            raise SandboxError(f"the {self.backend} sandbox cannot be reached: {error}") from error
        if link is None:
            self._lose("it has ended")
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        self._link = link
        self._connected = True
        self._greet(_GRACE_S)

    def _greet(self, timeout: float) -> None:
        """Find the place in the stream where answers begin, and set the worker up if it is new."""
        nonce = secrets.token_hex(16)
        deadline = time.monotonic() + timeout
        request = {"op": "hello", "id": 0, "nonce": nonce, "config": self._setup.config()}
        self._buffer.clear()
        try:
            self._send(request, seccomp.program(), deadline)
            while (at := self._buffer.find(nonce.encode())) < 0:
                del self._buffer[: -len(nonce)]
                self._fill(deadline)
            del self._buffer[: at + len(nonce)]
            answer, _ = self._answer(0, deadline)
        except (OSError, ValueError) as error:
            said = self._link.said().decode(errors="replace").strip()
            self._link.close()  # a new link to a box that was closed meanwhile is nobody else's to close
            self._lose(f"its worker did not start: {error or type(error).__name__}{f': {said}' if said else ''}")
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}") from error
        if "error" in answer:
            self._lose(f"its worker did not start: {answer['error']}")
            raise SandboxLost(f"the {self.backend} sandbox is lost: {self._reason}")
        self.python_version = answer["python"]

    def _send(self, request: dict[str, Any], blob: bytes, deadline: float) -> None:
        head = json.dumps(request).encode()
        with self._sending:
            self._link.send(struct.pack(">II", len(head), len(blob)) + head + blob, deadline)

    def _fill(self, deadline: float) -> None:
        data = self._link.receive(deadline)
        if not data:
            raise ConnectionError("end of stream")
        self._buffer += data

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._buffer) < count:
            self._fill(deadline)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _answer(self, number: int, deadline: float) -> tuple[dict[str, Any], bytes]:
        while True:
            head, blob = struct.unpack(">II", self._take(8, deadline))
            if head > _BIGGEST or blob > 3 * _BIGGEST:
                raise ValueError("a frame too large")
            answer = json.loads(self._take(head, deadline))
            data = self._take(blob, deadline)
            if answer["id"] == number:  # others are answers to calls that were given up
                return answer, data

    def _lose(self, reason: str) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed, self._reason = True, reason
        self._link.close()
        self._remove()
        _boxes.discard(self)

    def _forked(self) -> None:
        self._closed, self._reason = True, "it belongs to the process that opened it"
        self._link.forget()


def _bytes(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode(errors="replace")


def _text(text: str) -> str:
    """Without halves of surrogate pairs, which no program takes."""
    return text.encode(errors="replace").decode()


def _path(path: str) -> str:
    if not path or "\0" in path:
        raise ConfigError(f"{path!r} is no path: it must not be empty or hold a NUL character")
    return _text(path)
