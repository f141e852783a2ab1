"""What an expert looks at: the elements of a page, to be found by what they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from re import Pattern

from agentgym.envs.miniwob_text import Element


@dataclass(frozen=True)
class Page:
    """The elements of a page, in reading order."""

    elements: list[Element]

    def all(self, **wanted: str | Pattern[str]) -> list[Element]:
        """The numbered elements whose fields are equal to these texts or match these patterns as a whole."""
        return [e for e in self.elements if e.number and all(_is(getattr(e, k), v) for k, v in wanted.items())]

    def find(self, **wanted: str | Pattern[str]) -> Element | None:
        """The first of them."""
        return next(iter(self.all(**wanted)), None)

    def click(self, **wanted: str | Pattern[str]) -> list[str]:
        """Commands that click on any of them."""
        return [f"click {element.number}" for element in self.all(**wanted)]


def _is(value: str, wanted: str | Pattern[str]) -> bool:
    return value == wanted if isinstance(wanted, str) else bool(wanted.search(value))


def quoted(goal: str) -> list[str]:
    """What stands between quotation marks."""
    return re.findall(r'"([^"]*)"', goal)
