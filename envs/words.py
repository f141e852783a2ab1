"""Words that more than one environment's sentences need."""

from __future__ import annotations

from collections.abc import Sequence


def listed(things: Sequence[str]) -> str:
    """``nothing``, ``the a``, ``the a and the b``, ``the a, the b and the c``."""
    if not things:
        return "nothing"
    *most, last = (f"the {thing}" for thing in things)
    return f"{', '.join(most)} and {last}" if most else last
