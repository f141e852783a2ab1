"""Boxes kept warm: opened ahead, made clean after use, asked for a sign of life before they are handed out."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from agentgym.sandboxes import open_sandbox, reaper
from agentgym.sandboxes.base import Sandbox, SandboxUnavailable

from agentgym.errors import ConfigError, SandboxError, unknown

_log = logging.getLogger(__name__)

_OPENERS = 4
_RETRY_S = (0.1, 0.5, 2.0)
"""Pauses after boxes that could not be opened; after the last one the error goes to whoever waits for a box."""


class SandboxPool:
    """A warm pool of boxes.

    A box is used by one taker at a time. What comes back is made clean off the taker's path, by ``reset`` or by opening
    another one, and only boxes that are clean and answer are handed out.

    Attributes:
        opened: How many boxes were opened.
        recycled: How many times a box was made clean and used again.
        discarded: How many boxes were closed because they were dirty, dead or spent.
    """

    def __init__(
        self,
        open_box: Callable[[], Sandbox] = open_sandbox,
        minimum: int = 1,
        maximum: int = 8,
        recycle: Literal["reset", "reopen"] = "reset",
        max_uses: int = 1000,
    ):
        """Begin to open ``minimum`` boxes; nothing is waited for.

        Args:
            open_box: Opens a box, for example ``functools.partial(open_sandbox, "docker", image="data")``.
            minimum: Boxes that are kept ready or in use.
            maximum: Boxes there may be at a time; takers wait for one beyond that.
            recycle: ``reset``: a box is emptied and used again. ``reopen``: every taker gets a new one.
            max_uses: Takers after which a box is replaced all the same.

        Raises:
            ConfigError: For numbers that make no pool.
        """
        if not 0 <= minimum <= maximum or maximum < 1:
            raise ConfigError(f"sandbox pool: minimum is {minimum}, maximum {maximum}: 0 <= minimum <= maximum >= 1")
        if recycle not in ("reset", "reopen"):
            raise unknown("sandbox pool recycle", recycle, ("reset", "reopen"))
        if max_uses < 1:
            raise ConfigError(f"sandbox pool: max_uses {max_uses}: it must be at least 1")
        self.opened = self.recycled = self.discarded = 0
        self._open_box, self._minimum, self._maximum = open_box, minimum, maximum
        self._most_uses = max_uses if recycle == "reset" else 1
        self._changed = threading.Condition()
        self._ready: deque[Sandbox] = deque()
        self._taken: set[Sandbox] = set()
        self._uses: dict[Sandbox, int] = {}
        self._count = self._opening = self._waiting = 0
        self._error: SandboxError | None = None
        self._closed, self._owner = False, os.getpid()
        self._reaper = contextlib.ExitStack()
        self._reaper.enter_context(reaper.watch)  # one reaper for as long as the pool lives
        self._work = ThreadPoolExecutor(_OPENERS, thread_name_prefix="agentgym-sandbox-pool")
        with self._changed:
            self._fill()

    def take(self, timeout: float = 120.0) -> Sandbox:
        """Hand out a box that is clean and answers, opening one if none is ready.

        Raises:
            SandboxError: If none could be opened, none came free within ``timeout`` seconds, or the pool is closed.
        """
        deadline = time.monotonic() + timeout
        while True:
            box = self._next(deadline, timeout)
            try:
                box.ping()
            except SandboxError as error:
                _log.warning("a box of the pool is dead: %s", error)
                self._discard(box)
            else:
                return box

    def give_back(self, box: Sandbox) -> None:
        """Take a box back in whatever state; it is made clean or replaced in the background.

        Raises:
            ConfigError: If it is not one of those handed out.
        """
        with self._changed:
            if box not in self._taken:
                raise ConfigError("this box was not taken from this pool, or was given back before")
            self._taken.remove(box)
            if not self._closed:
                self._work.submit(self._renew, box)
                return
        box.close()

    @contextlib.contextmanager
    def box(self, timeout: float = 120.0) -> Iterator[Sandbox]:
        """Take a box for the length of a block."""
        box = self.take(timeout)
        try:
            yield box
        finally:
            self.give_back(box)

    def close(self) -> None:
        """Close every box; one that is in use is closed when it comes back."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._work.shutdown(wait=True, cancel_futures=True)
        for box in self._uses.keys() - self._taken:
            box.close()
        self._reaper.close()

    def __enter__(self) -> SandboxPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _next(self, deadline: float, timeout: float) -> Sandbox:
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._closed or self._owner != os.getpid():
                        raise SandboxError("the sandbox pool is closed, or belongs to another process")
                    if self._ready:
                        box = self._ready.popleft()
                        self._taken.add(box)
                        self._uses[box] += 1
                        return box
                    if self._error is not None:
                        error, self._error = self._error, None
                        raise error
                    if self._opening < self._waiting and self._count < self._maximum:
                        self._start_opening()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise SandboxError(f"none of the {self._maximum} boxes of the pool came free in {timeout:g} s")
                    self._changed.wait(left)
            finally:
                self._waiting -= 1

    def _fill(self) -> None:
        while self._count < self._minimum and not self._closed:
            self._start_opening()

    def _start_opening(self) -> None:
        self._count += 1
        self._opening += 1
        self._work.submit(self._open)

    def _open(self) -> None:
        box: Sandbox | None = None
        error: SandboxError | None = None
        for pause in (*_RETRY_S, 0.0):
            try:
                box = self._open_box()
                break
            except SandboxError as caught:
                error = caught
            except Exception as caught:
                error = SandboxError(f"the pool cannot open a box: {type(caught).__name__}: {caught}")
            if self._closed or isinstance(error, SandboxUnavailable):
                break
            time.sleep(pause)
        with self._changed:
            self._opening -= 1
            if box is not None:
                self.opened += 1
                self._uses[box] = 0
                self._ready.append(box)
            else:
                self._count -= 1
                self._error = error
                _log.warning("the pool cannot open a box: %s", error)
            self._changed.notify_all()

    def _renew(self, box: Sandbox) -> None:
        if not box.alive or self._uses[box] >= self._most_uses:
            self._discard(box)
            return
        try:
            box.reset()
        except SandboxError as error:
            _log.warning("a box of the pool cannot be made clean: %s", error)
            self._discard(box)
            return
        with self._changed:
            self.recycled += 1
            self._ready.append(box)
            self._changed.notify_all()

    def _discard(self, box: Sandbox) -> None:
        box.close()
        with self._changed:
            self._taken.discard(box)
            del self._uses[box]
            self.discarded += 1
            self._count -= 1
            self._fill()
            self._changed.notify_all()
