"""What a MiniWoB page shows, as text: a numbered list of its elements."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentgym.envs.miniwob_actions import Command

_TYPED = ("textbox", "textarea", "password", "search", "email", "tel", "url", "number", "date", "time", "select")
_CLICKED = (
    *_TYPED,
    *("button", "link", "checkbox", "radio", "option", "item", "tab", "menuitem", "image"),
)
_PLACED = re.compile(r"rect|circle|ellipse|triangle|polygon\d*|path|line|polyline|canvas|image|letter")


@dataclass(frozen=True)
class Element:
    """Something on the page.

    Attributes:
        number: By which commands name it; 0 for text that is no element of its own.
        kind: ``button``, ``textbox``, ``link``, ``checkbox``, ``text``, ``circle``, ...
        text: What it says, or its label.
        value: What is typed or chosen in it, None where nothing can be.
        flags: Some of ``checked``, ``disabled``, ``active``, ``focused``.
        box: Middle (x, y), width and height in pixels.
        id: Its id in the document.
        classes: Its classes there.
        colour: A name, ``#rrggbb``, or nothing.
        aim: Where one would point at it (x, y), outside the screen if one has to scroll first; None if nobody points.
    """

    number: int
    kind: str
    text: str
    value: str | None
    flags: list[str]
    box: list[int]
    id: str
    classes: str
    colour: str
    aim: list[int] | None = None

    @property
    def typed(self) -> bool:
        """Whether text can be typed into it."""
        return self.kind in _TYPED

    @property
    def nameless(self) -> bool:
        """Whether nothing but its class, colour and place tells it from others."""
        return not self.text and not self.typed

    def line(self, positions: bool) -> str:
        """As a line of the list."""
        words = [str(self.number), self.kind] if self.number else []
        if self.text:
            words.append(self.text if not self.number else f'"{self.text}"')
        name = self.id or self.classes.split(" ")[0]
        if name and (self.nameless or self.typed):
            words.append(f"{'#' if self.id else '.'}{name}")
        if self.value is not None:
            words.append(f'value "{self.value}"')
        drawn = bool(_PLACED.fullmatch(self.kind))
        if self.colour and (self.nameless or drawn):
            words.append(self.colour)
        words += self.flags
        if self.number and (positions or drawn or (self.nameless and (self.colour or not name))):
            x, y, width, height = self.box
            words.append(f"at {x} {y} size {width} {height}")
        return " ".join(words)


def elements(rows: list[list[object]]) -> list[Element]:
    """The elements that the script in the page has found."""
    return [Element(*row) for row in rows]  # type: ignore[arg-type]


def tell(goal: str, page: list[Element], positions: bool, note: str = "") -> str:
    """The page in words.

    Args:
        goal: The instruction of the task.
        page: Its elements.
        positions: Whether every element says where it is.
        note: What was wrong with the last command.
    """
    lines = [note] if note else []
    return "\n".join([*lines, f"Task: {goal}", *(element.line(positions) for element in page)])


def pointed(command: Command, page: list[Element], size: tuple[int, int]) -> str:
    """A command with numbers as one that only points; what has to come before it if it takes several, "" if none does.

    Args:
        command: A click, a text, a key, a scroll or a drag.
        page: The elements it names.
        size: Width and height of the screen; what lies outside is scrolled to first.
    """
    boxes = {element.number: element for element in page}
    places = [boxes[place] for place in (command.place, command.to) if isinstance(place, int) and place in boxes]
    if any(not 0 <= e.box[0] < size[0] or e.box[2] * e.box[3] == 0 for e in places):
        return ""
    points = []
    for element in places:
        x, y = element.aim or element.box[:2]
        if not 0 <= y < size[1]:
            return "scroll down" if y >= size[1] else "scroll up"
        points.append(f"{x} {y}")
    if command.kind == "type" and places:
        if "focused" not in places[0].flags:
            return f"click {points[0]}"
        text = command.argument
        return "" if places[0].value else f'type "{text}"' if text != text.strip() else f"type {text}"
    if command.kind in ("click", "drag") and places:
        return f"{command.kind} {' '.join(points)}" if len(places) == 1 + (command.kind == "drag") else ""
    return "" if places else f"{command.kind} {command.argument}".strip()


def commands(goal: str, page: list[Element]) -> list[str]:
    """Commands that do something, sorted: clicks on elements, and the quoted words of the instruction typed."""
    quoted = [word for word in re.findall(r'"([^"]+)"', goal) if word.strip()]
    found = {f"click {element.number}" for element in page if element.number}
    found |= {f"type {element.number} {word}" for element in page if element.typed for word in quoted}
    return sorted(found | {"wait"})
