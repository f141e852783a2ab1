"""What computes the turns of policies in this process: one forward of each after the other, when nobody is missing.

Each `HFPolicy` has an engine of its own. Policies that play the same games share one for that long (`together`): who
comes to which policy when would otherwise depend on how fast the others wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from agentgym.errors import ConfigError


class Computing(Protocol):
    """A policy as its engine sees it.

    Attributes:
        deterministic: Wait for every live session before each forward.
        engine: What drives it.
    """

    deterministic: bool
    engine: Engine

    @property
    def open_sessions(self) -> int:
        """Sessions that are not closed."""
        ...

    @property
    def missing(self) -> bool:
        """Whether a live session has no turn to write."""
        ...

    def advance(self) -> bool:
        """Compute one forward of the turns that wait; whether there were any."""
        ...


class Engine:
    """Drives one policy, or several in step."""

    def __init__(self, policies: Sequence[Computing]):
        """Drive ``policies``; nothing runs before `start`."""
        self.policies = list(policies)
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """See to it that the turns that wait are computed, in the loop that is running."""
        if self._task is None or self._task.done():
            self._wake = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._run())
        self.wake()

    def wake(self) -> None:
        """Look again whether somebody is missing."""
        if self._wake is not None:
            self._wake.set()

    async def _run(self) -> None:
        """Compute while there are sessions."""
        assert self._wake is not None
        while any(policy.open_sessions for policy in self.policies):
            held = any(policy.deterministic and policy.missing for policy in self.policies)
            computed = not held and [policy.advance() for policy in self.policies]
            if not computed or not any(computed):
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(0)


@contextmanager
def together(policies: Sequence[Computing]) -> Iterator[None]:
    """Let one engine drive several policies.

    Raises:
        ConfigError: If one of them is in use.
    """
    if any(policy.open_sessions for policy in policies):
        raise ConfigError("a policy that plays already cannot join another game: play one after the other")
    shared = Engine(policies)
    for policy in policies:
        policy.engine = shared
    try:
        yield
    finally:
        for policy in policies:
            policy.engine = Engine([policy])
