"""Environments in processes of their own, so that one that dies, or hangs for ever, does not take the run with it.

A host process runs `serve`: it holds environments, each on a thread, and answers calls over a socket. `EnvProcess` is
the owner's side of it. A host ends when its owner does, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from agentgym import errors
from agentgym.errors import ConfigError, EnvError

_PR_SET_PDEATHSIG = 1
Settle = Callable[[Any, Exception | None], None]


class EnvProcess:
    """A process that holds environments.

    Attributes:
        live: Environments in it that are in use or idle.
        retired: Whether it hangs or died, so that nothing new goes into it.
    """

    def __init__(self, env_id: str, kwargs: dict[str, Any]):
        """Start the process; its environments are of this id and these arguments.

        Raises:
            ConfigError: If the arguments cannot be sent to another process.
            EnvError: If it cannot be started.
        """
        try:
            self._hello = ForkingPickler.dumps((sys.path, os.getpid(), env_id, kwargs))
        except Exception as error:
            raise ConfigError(f"env.kwargs cannot be sent to another process: {error}") from error
        self.live, self.retired = 0, False
        self._waiting: dict[int, Settle] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._started: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True, name="agentgym-env-process")
        self._thread.start()
        if (problem := self._started.get()) is not None:
            raise problem

    def call(self, seat: int, method: str, arguments: tuple[Any, ...], settle: Settle) -> None:
        """Send a call for the environment in a seat; ``settle`` gets its result or error, on another thread."""
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = settle
        try:
            self._send((number, seat, method, arguments))
        except Exception as error:  # the process is gone, or an argument cannot be sent
            if self._take(number):
                found = self._death() if isinstance(error, OSError) else EnvError(f"cannot send {method}: {error}")
                settle(None, found)

    def release(self, seat: int) -> None:
        """Close the environment in a seat."""
        with contextlib.suppress(OSError):
            self._send((0, seat, "close", ()))

    def close(self) -> None:
        """Ask the process to close its environments and end."""
        self.retired = True
        with contextlib.suppress(OSError):
            self._send(None)

    def kill(self) -> None:
        """End the process at once."""
        self.retired = True
        self._process.kill()

    def join(self, timeout: float) -> bool:
        """Wait until the process has ended; False if it has not."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _read(self) -> None:
        """Start the process and hand out its answers until it ends.

        The process is started here because it is told to die with the thread that started it, and this one lives as
        long as the process is wanted.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", "from agentgym.env_process import serve; serve()", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the owner
                )
            self._connection = Connection(ours.detach())
            self._connection.send_bytes(self._hello)
        except OSError as error:
            self._started.put(EnvError(f"cannot start a process for the environment: {error}"))
            return
        self._started.put(None)
        while True:
            try:
                number, result, packed = self._connection.recv()
            except (EOFError, OSError):
                break
            except Exception:  # an answer that cannot be read here: what else it says cannot be trusted
                self._process.kill()
                break
            if (settle := self._take(number)) is not None:
                settle(result, _unpack(packed))
        self.retired = True
        death = self._death()
        self._process.wait()
        with self._lock:
            self._connection.close()
            left, self._waiting = list(self._waiting.values()), {}
        for settle in left:
            settle(None, death)

    def _send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def _take(self, number: int) -> Settle | None:
        with self._lock:
            return self._waiting.pop(number, None)

    def _death(self) -> EnvError:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return EnvError("the process of the environment closed its socket")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return EnvError(f"the process of the environment died ({how})")


def _pack(error: Exception) -> tuple[str, str]:
    """The error's text, and the name of the class in `errors` that it is or derives from."""
    kinds = (kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return next(kinds, EnvError).__name__, str(error)


def _unpack(error: tuple[str, str] | None) -> Exception | None:
    if error is None:
        return None
    kind = getattr(errors, error[0], EnvError)
    found: Exception = kind(error[1])
    return found


def serve() -> None:
    """The host process: hold environments and answer calls until the owner goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    path, owner, env_id, kwargs = connection.recv()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(0)  # it died before it could be told apart
    sys.path[:] = path

    from agentgym.env_worker import EnvThread, make_env

    lock = threading.Lock()
    held: dict[int, EnvThread] = {}

    def answer(number: int, result: Any, error: Exception | None) -> None:
        packed = None if error is None else _pack(error)
        with lock:
            try:
                connection.send((number, result, packed))
            except OSError:
                os._exit(0)  # nobody listens any more
            except Exception as problem:
                found = _pack(EnvError(f"what the environment returned cannot be sent: {problem}"))
                connection.send((number, None, found))

    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            break
        if message is None:
            break
        number, seat, method, arguments = message
        if method == "close":
            if seat in held:
                held.pop(seat).close()
            continue
        if seat not in held:
            held[seat] = EnvThread(lambda: make_env(env_id, kwargs))
        held[seat].submit(method, arguments, functools.partial(answer, number))
    for thread in held.values():
        thread.close()
    for thread in held.values():
        thread.join(5.0)
    os._exit(0)  # an environment that hangs must not keep the process
