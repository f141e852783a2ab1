"""Commands of MiniWoB: text to what the page is told to do, and how near two commands are to each other."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

Place = int | tuple[float, float] | None
"""The number of an element, a point of the screen in pixels, or where the focus or the mouse is."""

KEYS = {
    "enter": "Enter",
    "return": "Enter",
    "tab": "Tab",
    "escape": "Escape",
    "esc": "Escape",
    "backspace": "Backspace",
    "delete": "Delete",
    "home": "Home",
    "end": "End",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "arrowleft": "ArrowLeft",
    "arrowright": "ArrowRight",
    "arrowup": "ArrowUp",
    "arrowdown": "ArrowDown",
    "space": " ",
    "ctrl+a": "ctrl+a",
    "ctrl+c": "ctrl+c",
    "ctrl+v": "ctrl+v",
    "ctrl+x": "ctrl+x",
    "ctrl+z": "ctrl+z",
}
"""What a key may be called, in lower case, and its name for the page."""

POINTED_USAGE = (
    "click X Y | type TEXT | press KEY | scroll up | scroll down | drag X Y X2 Y2 | wait | done; a picture has no "
    "numbered elements"
)

USAGE = (
    "click N | click X Y | type N TEXT | type TEXT | press KEY | scroll up | scroll down | scroll N down | "
    "drag N M | drag X Y X2 Y2 | wait | done"
)

LONGEST_TEXT = 2000
"""Characters that can be typed in one step."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        kind: ``click``, ``type``, ``press``, ``scroll``, ``drag``, ``wait`` or ``done``.
        place: Where.
        argument: The text, the key, ``up`` or ``down``.
        to: The end of a drag.
    """

    kind: str
    place: Place = None
    argument: str = ""
    to: Place = None

    def call(self) -> list[object]:
        """For the script in the page."""
        return [self.kind, self.place, self.to if self.kind == "drag" else self.argument]


class Mistake(ValueError):
    """A text that is no command; its message is for the agent."""


def parse(text: str, numbers: bool = True) -> Command:
    """Read a command; case, brackets, commas and ``#`` do not matter, nor do quotation marks around a text.

    Args:
        text: The command.
        numbers: Whether elements have numbers; without them all places are points.

    Raises:
        Mistake: It is none.
    """
    head, _, rest = text.strip().partition("(" if re.match(r"\s*\w+\(", text) else " ")
    kind = head.strip().lower().rstrip(":")
    rest = rest.strip()
    if kind == "type":
        return _typing(rest.removesuffix(")") if "(" in text[: len(head) + 1] else rest, numbers)
    words = rest.lower().translate(str.maketrans("()[],#;", "       ")).split()
    if kind in ("wait", "done") and not words:
        return Command(kind)
    if kind == "press" and len(words) == 1 and (key := _key(words[0], rest)):
        return Command(kind, argument=key)
    if kind == "press":
        raise Mistake(f"unknown key; the keys are: a single character, {', '.join(k for k in KEYS)}")
    if kind == "scroll" and words and words[-1] in ("up", "down") and (numbers or len(words) != 2):
        return Command(kind, _place(words[:-1]) if words[:-1] else None, words[-1])
    if kind == "click" and words and (numbers or len(words) == 2):
        return Command(kind, _place(words))
    if kind == "drag":
        words = [word for word in words if word != "to"]
        cut = ({2: 1, 3: 1, 4: 2} if numbers else {4: 2}).get(len(words))
        if cut:
            return Command(kind, _place(words[:cut]), to=_place(words[cut:]))
    raise Mistake(f"unknown command; the commands are: {USAGE if numbers else POINTED_USAGE}")


def _typing(rest: str, numbers: bool) -> Command:
    found = re.match(r"[\[#]?(\d{1,9})\]?[\s,]+(?=\S)", rest) if numbers else None
    content = _unquoted(rest[found.end() :] if found else rest)
    if not content:
        raise Mistake("type needs a text")
    if len(content) > LONGEST_TEXT:
        raise Mistake(f"a text of {len(content)} characters is too long: {LONGEST_TEXT} can be typed at once")
    return Command("type", int(found[1]) if found else None, content)


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _key(word: str, rest: str) -> str:
    word = word.replace("control+", "ctrl+")
    return KEYS.get(word) or (rest.strip() if len(rest.strip()) == 1 else "")


def _place(words: list[str]) -> Place:
    if not 1 <= len(words) <= 2 or not all(_NUMBER.fullmatch(word) for word in words):
        raise Mistake("a place is the number of an element, or X and Y in pixels")
    numbers = [float(word) for word in words]
    if any(abs(number) > 1e6 for number in numbers):
        raise Mistake("a number is too large")
    if len(words) == 2:
        return numbers[0], numbers[1]
    if not words[0].isdigit():
        raise Mistake(f"{words[0]} is not the number of an element")
    return int(words[0])


def likeness(given: Command, wanted: Command, boxes: dict[int, list[int]]) -> float:
    """How near the arguments of a command are to those of another one of the same kind, in [0, 1].

    Places are the same if they name the same element, or one lies in the box of the other. A text counts by the F1 of
    its words, a key or a direction if it is equal. Of two arguments the mean is taken.

    Args:
        given: What the agent did.
        wanted: What the expert would do.
        boxes: Middle, width and height of each element, by its number.
    """
    scores = []
    if wanted.kind in ("click", "drag") or wanted.place is not None:
        scores.append(_same_place(given.place, wanted.place, boxes))
    if wanted.kind == "drag":
        scores.append(_same_place(given.to, wanted.to, boxes))
    if wanted.kind == "type":
        scores.append(_f1(given.argument, wanted.argument))
    elif wanted.kind in ("press", "scroll"):
        scores.append(float(given.argument == wanted.argument))
    return sum(scores) / len(scores) if scores else 1.0


def _same_place(given: Place, wanted: Place, boxes: dict[int, list[int]]) -> float:
    if given == wanted:
        return 1.0
    if isinstance(given, int) and given in boxes and isinstance(wanted, tuple):
        given, wanted = wanted, given
    if isinstance(given, tuple) and isinstance(wanted, int) and wanted in boxes:
        x, y, width, height = boxes[wanted]
        return float(abs(given[0] - x) <= width / 2 and abs(given[1] - y) <= height / 2)
    if isinstance(given, tuple) and isinstance(wanted, tuple):
        return float(max(abs(given[0] - wanted[0]), abs(given[1] - wanted[1])) <= 5)
    return 0.0


def _f1(given: str, wanted: str) -> float:
    one, other = given.split(), wanted.split()
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other)) if common else float(given == wanted)
