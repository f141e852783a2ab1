"""Actions on a screen, and the reply in which a model gives one: a reasoning block, then a list with one action.

    <think>
    The search button is at the top.
    </think>
    <answer>[{"action": "click", "point": [120, 48], "input_text": "none"}]</answer>

The list may be JSON or a Python literal. ``point`` is ``[x, y]`` in pixels of the screen as it is shown, and
``[-100, -100]`` where the action has none; ``input_text`` is the text to type, the name of the app, the direction in
which to scroll or the answer, and ``"none"`` where the action needs no text.

Source: the contract of GUI-R1 (arXiv:2504.10458), to which ``navigate_home`` and ``answer`` are added.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

KINDS: tuple[str, ...] = (
    *("wait", "long_press", "click", "press_back", "navigate_home", "type", "open_app", "scroll", "answer"),
)
"""What can be done."""

POINTED = ("click", "long_press")
"""Kinds that need a point; ``type`` may have one, the others have none."""

TEXTED = ("type", "open_app", "scroll", "answer")
"""Kinds that need a text."""

DIRECTIONS = ("up", "down", "left", "right")
"""Where a scroll goes: ``down`` shows what is further down, for which a finger moves up."""

FIELDS = ("action", "point", "input_text")
NO_POINT, NO_TEXT = (-100, -100), "none"
"""What stands in a field that an action does not need."""

MOST_PIXELS = 1_258_291
"""The cap on the pixels of a screenshot in GUI-R1's public configuration."""

_UNUSED_TEXTS = ("", NO_TEXT, "no input text")
_LONGEST = 20_000
_REPLY = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class GuiActionError(ValueError):
    """A text that is no action; the message is for the model."""


@dataclass(frozen=True)
class GuiAction:
    """An action on a screen. What its kind has no use for is dropped.

    Attributes:
        kind: One of `KINDS`.
        point: ``(x, y)`` in pixels, or None.
        text: Text to type, name of an app, one of `DIRECTIONS`, or answer; None where the kind has none.

    Raises:
        GuiActionError: There is no such kind, or it lacks its point or text.
    """

    kind: str
    point: tuple[int, int] | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GuiActionError(f"there is no action {str(self.kind)[:40]!r}: choose from {', '.join(KINDS)}")
        if self.kind in POINTED and self.point is None:
            raise GuiActionError(f'{self.kind} needs a "point": two integers [x, y] on the screen')
        if self.kind in TEXTED and not (self.text or "").strip():
            raise GuiActionError(f'{self.kind} needs an "input_text"')
        if self.kind == "scroll":
            object.__setattr__(self, "text", (self.text or "").strip().lower())
            if self.text not in DIRECTIONS:
                raise GuiActionError(f'scroll needs one of {", ".join(DIRECTIONS)} as "input_text"')
        if self.kind not in (*POINTED, "type"):
            object.__setattr__(self, "point", None)
        if self.kind not in TEXTED:
            object.__setattr__(self, "text", None)


def read_action(text: str) -> GuiAction:
    """Read a list with one action, without the blocks around it.

    Raises:
        GuiActionError: If it is anything else.
    """
    value = _literal(text.strip())
    if not isinstance(value, list) or len(value) != 1:
        raise GuiActionError("the answer must be a list with exactly one action: [{...}]")
    fields = value[0]
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        raise GuiActionError(f"the action must be an object with exactly the fields {', '.join(FIELDS)}")
    if not isinstance(fields["action"], str):
        raise GuiActionError(f'"action" must be a text: one of {", ".join(KINDS)}')
    if not isinstance(fields["input_text"], str):
        raise GuiActionError(f'"input_text" must be a text, "{NO_TEXT}" if it is not needed')
    kind, given = fields["action"], fields["input_text"].encode(errors="replace").decode()
    unused = kind == "open_app" and given.strip().lower() in _UNUSED_TEXTS
    return GuiAction(kind, _point(fields["point"]), None if unused else given)


def read_reply(text: str) -> tuple[str, GuiAction]:
    """Read a reply: a reasoning block, then an answer block, and nothing else.

    Returns:
        The reasoning, and the action.

    Raises:
        GuiActionError: If it is anything else.
    """
    found = _REPLY.fullmatch(text)
    for tag in _TAGS:
        if (count := text.count(tag)) != 1:
            raise GuiActionError(f"a reply needs exactly one {tag}, this one has {count or 'none'}")
    if found is None:
        raise GuiActionError("a reply is <think>...</think> and then <answer>...</answer>, with nothing else around")
    return found[1].strip(), read_action(found[2])


def write_action(action: GuiAction) -> str:
    """An action as JSON; `read_action` reads it back."""
    point, text = action.point or NO_POINT, NO_TEXT if action.text is None else action.text
    written = json.dumps([dict(zip(FIELDS, (action.kind, list(point), text), strict=True))], ensure_ascii=False)
    return written.replace("<", "\\u003c")  # in JSON, < stands in strings only; so no text fakes a tag


def write_reply(action: GuiAction, thought: str = "") -> str:
    """An action as a reply; `read_reply` reads it back.

    Raises:
        ValueError: If the thought holds one of the tags.
    """
    if any(tag in thought for tag in _TAGS):
        raise ValueError("the thought holds a tag of the reply")
    inner = f"\n{thought.strip()}\n" if thought.strip() else ""
    return f"<think>{inner}</think>\n<answer>{write_action(action)}</answer>"


def resized(width: int, height: int, most_pixels: int = MOST_PIXELS, patch: int = 28) -> tuple[int, int]:
    """The size at which the Qwen2.5-VL family looks at an image.

    Sides are rounded to multiples of ``patch``; if that is above the cap, both are divided by
    ``sqrt(width * height / most_pixels)`` and rounded down to multiples.

    Args:
        width: In pixels.
        height: In pixels.
        most_pixels: The cap.
        patch: 28 for Qwen2.5-VL, 32 for Qwen3-VL.

    Returns:
        Width and height in pixels.
    """
    sides = [max(patch, round(side / patch) * patch) for side in (width, height)]
    if sides[0] * sides[1] > most_pixels:
        factor = math.sqrt(width * height / most_pixels)
        sides = [max(patch, math.floor(side / factor / patch) * patch) for side in (width, height)]
    return sides[0], sides[1]


def rescaled(point: tuple[float, float], size: tuple[int, int], to: tuple[int, int]) -> tuple[int, int]:
    """A point of a screen of one size (width, height) on a screen of another, each axis by its own factor.

    A point on the one screen stays on the other.
    """
    x, y = (_moved(p, a, b) for p, a, b in zip(point, size, to, strict=True))
    return x, y


def _moved(place: float, side: int, to: int) -> int:
    moved = round(place * to / side)
    return min(moved, to - 1) if place < side else moved


def _literal(text: str) -> Any:
    """The value of a JSON text or Python literal."""
    if not text:
        raise GuiActionError("the answer is empty")
    if len(text) > _LONGEST:
        raise GuiActionError(f"the answer is longer than {_LONGEST} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of an escape such as \d
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise GuiActionError("the answer is neither JSON nor a Python literal") from None


def _point(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(v) is not int for v in value):
        raise GuiActionError(f'"point" must be two integers [x, y], {list(NO_POINT)} if it is not needed')
    if tuple(value) == NO_POINT:
        return None
    if not all(0 <= v < 10**6 for v in value):
        raise GuiActionError('"point" is off the screen')
    return value[0], value[1]
