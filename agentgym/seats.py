"""The sessions of a game's seats, of which an engine waits for one at a time.

In a game one seat decides while the others wait, keeping what they have cached. A deterministic engine computes when
nobody is missing, so of every game exactly one session may be live: the one that writes, or between two turns the
*anchor*, which writes nothing and so holds the engine until the next seat knows what to answer to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from agentgym.policies.base import Policy, Session
from agentgym.policies.engine import together


@contextmanager
def lockstep(policies: Sequence[Policy]) -> Iterator[list[Policy]]:
    """Let those of the policies that compute deterministically share an engine, and name them."""
    driven = [policy for policy in policies if getattr(policy, "deterministic", False)]
    with together(cast(Any, driven)):
        yield driven


class Places:
    """Sessions for one game after the other."""

    def __init__(self, driven: Sequence[Policy]):
        """Open the anchor, a session of one of the policies whose engine is to wait between turns."""
        self._driven = {id(policy) for policy in driven}
        self._free: dict[int, list[Session]] = {}
        self._seated: dict[str, tuple[int, Session]] = {}
        self._anchor: Session | None = None
        if driven:
            self._anchor = driven[0].open()
            self._free[id(driven[0])] = [self._anchor]

    def seat(self, agent: str, policy: Policy, key: tuple[int, ...], group: str) -> None:
        """Give an agent a session, parked."""
        free = self._free.setdefault(id(policy), [])
        session = free.pop() if free else policy.open()
        if session is not self._anchor:
            session.live = False
        session.begin(key, group)
        self._seated[agent] = (id(policy), session)

    @contextmanager
    def turn(self, agent: str) -> Iterator[Session]:
        """The session of the agent, live as long as it writes."""
        (policy, session), anchor = self._seated[agent], self._anchor
        session.live = True
        if anchor is not None and anchor is not session and policy in self._driven:
            anchor.live = False
        try:
            yield session
        finally:
            if anchor is not None:
                anchor.live = True
            if session is not anchor:
                session.live = False

    def clear(self) -> None:
        """End a game: its sessions are free for the next, and hold nothing that others could copy from."""
        for policy, session in self._seated.values():
            session.begin((-1,), "")
            self._free[policy].append(session)
        self._seated.clear()

    def close(self) -> None:
        """Close all sessions."""
        self.clear()
        for sessions in self._free.values():
            for session in sessions:
                session.close()
        self._free.clear()
        self._anchor = None
