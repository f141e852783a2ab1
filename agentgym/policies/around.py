"""What a policy around another one passes on: everything but the writing of a turn."""

from __future__ import annotations

from typing import Any

from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.policies.engine import Engine


class AroundPolicy:
    """Another policy, whose turns come about in another way: `write` is all that a class of this kind defines.

    Attributes:
        inner: The policy inside.
    """

    def __init__(self, inner: Policy):
        """Wrap a policy."""
        self.inner: Any = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def engine(self) -> Engine:
        """What computes the inner policy's turns."""
        found: Engine = self.inner.engine
        return found

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.inner.engine = engine

    def open(self) -> AroundSession:
        """Open a place for episodes."""
        return AroundSession(self, self.inner.open())

    async def write(self, inner: Session, request: Request) -> Generation:
        """Write a turn with the help of a session of the inner policy."""
        raise NotImplementedError


class AroundSession:
    """A session of the inner policy."""

    def __init__(self, policy: AroundPolicy, inner: Session):
        self._policy, self._inner = policy, inner

    @property
    def live(self) -> bool:
        """Whether the engine waits for this session."""
        return self._inner.live

    @live.setter
    def live(self, value: bool) -> None:
        self._inner.live = value

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode."""
        self._inner.begin(key, group)

    async def generate(self, request: Request) -> Generation:
        """Write one turn."""
        return await self._policy.write(self._inner, request)

    def close(self) -> None:
        """Give the place back."""
        self._inner.close()
