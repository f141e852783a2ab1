"""Checks of sandboxes: what one is, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentgym.sandboxes.base import Result, Sandbox


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        function: Takes a box.
        needs: The guarantee that it tries, None for what every backend does.
        spends: Whether the box is closed afterwards.
    """

    function: Callable[[Sandbox], None]
    needs: str | None
    spends: bool

    def __call__(self, box: Sandbox) -> None:
        """Run it; the box must answer afterwards.

        Raises:
            AssertionError: If the box does not do what it should.
        """
        self.function(box)
        if not self.spends:
            result = box.python("print(40 + 2)", fresh=True, timeout=10)
            assert result.ok, f"the box does not work any more: {result}"
            assert result.stdout == "42\n", result


CHECKS: dict[str, Check] = {}


def check(needs: str | None = None, spends: bool = False) -> Callable[[Callable[[Sandbox], None]], Check]:
    """Put a function among the checks."""

    def add(function: Callable[[Sandbox], None]) -> Check:
        CHECKS[function.__name__] = Check(function, needs, spends)
        return CHECKS[function.__name__]

    return add


def fresh(box: Sandbox, code: str, timeout: float = 20.0) -> Result:
    """Run code in a fresh interpreter."""
    return box.python(code, fresh=True, timeout=timeout)


def same(seen: object, wanted: object) -> None:
    """Assert that they are equal."""
    assert seen == wanted, f"{seen!r} instead of {wanted!r}"


def raises(kind: type[Exception], action: Callable[[], object]) -> Exception:
    """Assert that an action raises, and return what."""
    try:
        seen = action()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised; {seen!r} came back")
