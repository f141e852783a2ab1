"""What every sandbox backend must do, must limit and must withstand: one suite for all of them, ours and yours.

    from agentgym.sandboxes import testing
    for outcome in testing.run(lambda: open_my_box()):
        print(outcome)

or, a test for each check::

    @pytest.mark.parametrize("name", testing.CHECKS)
    def test_my_backend(name, box):
        testing.CHECKS[name](box)

A check takes a box, raises AssertionError with what it saw, and leaves the box fit for the next one; `needs` says which
guarantee of `agentgym.sandboxes.base.GUARANTEES` it tries. A backend that does not promise it is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agentgym.sandboxes import testing_attacks, testing_behaviour, testing_limits
from agentgym.sandboxes.base import Sandbox
from agentgym.sandboxes.testing_base import CHECKS, Check

__all__ = ["CHECKS", "Check", "Outcome", "run", "testing_attacks", "testing_behaviour", "testing_limits"]


@dataclass(frozen=True)
class Outcome:
    """What came of a check: ``passed``, ``failed`` or ``not promised``, and what was seen."""

    name: str
    status: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name:<28} {self.status}{f': {self.detail}' if self.detail else ''}"


def run(open_box: Callable[[], Sandbox], names: Iterable[str] | None = None) -> Iterator[Outcome]:
    """Run the checks, in one box as long as it lasts: what one leaves behind must not hurt the next."""
    box: Sandbox | None = None
    try:
        for name in names or CHECKS:
            if box is None or not box.alive:
                box = open_box()
            one = CHECKS[name]
            if one.needs and one.needs not in box.guarantees:
                yield Outcome(name, "not promised", one.needs)
                continue
            try:
                one(box)
                if box.alive:
                    box.reset()
                yield Outcome(name, "passed")
            except Exception as error:
                yield Outcome(name, "failed", f"{type(error).__name__}: {error}")
                box.close()
    finally:
        if box is not None:
            box.close()
