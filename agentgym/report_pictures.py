"""Screenshots in the report: which ones go into the page, and what an action looks like on one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentgym.pictures import Ref, split
from agentgym.types import Trajectory

MOST_BYTES = 24_000_000
"""Images in a page, as PNG; those of later trajectories are left out."""
_POINTED = re.compile(r"\s*(\w+)[\s(:]+(-?\d+(?:\.\d+)?)[\s,]+(-?\d+(?:\.\d+)?)\)?\s*")
_DRAG = re.compile(r"\s*(?:drag|swipe)\w*[\s(:]+" + r"[\s,]+(?:to\s+)?".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\)?\s*")
_TYPED = re.compile(r"\s*type[\s(:]+(.*?)\)?\s*", re.DOTALL)


def images(trajectories: Iterable[Trajectory]) -> dict[str, str]:
    """The images of trajectories as data URLs by hash, as many as a page may hold."""
    found: dict[str, str] = {}
    size = 0
    for trajectory in trajectories:
        for name, picture in trajectory.pictures.items():
            if name not in found and size < MOST_BYTES:
                found[name] = picture.url
                size += len(found[name])
    return found


def parts(text: str, trajectory: Trajectory) -> str | dict[str, Any]:
    """A text; if it shows images, ``text`` without their markers and ``images``, their hashes."""
    if not trajectory.pictures:
        return text
    shown: list[str] = []
    names: list[str] = []
    for part in split(text):
        if isinstance(part, Ref) and part.hash in trajectory.pictures:
            names.append(part.hash)
        else:
            shown.append(part.marker if isinstance(part, Ref) else part)
    return {"text": "".join(shown), "images": names} if names else text


def drawn(action: str | None, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an action looks like on the screen it was made for; None if it has no place there.

    Read are commands (``click X Y``, ``drag X Y X2 Y2``, ``type TEXT``), one JSON object or a list of one with
    ``point`` or ``coordinate`` and ``input_text`` or ``text``, and ``point`` in the ``info`` that came back (for a
    click on an element by its number).

    Returns:
        ``point`` ``[x, y]`` in pixels, ``to`` likewise (the end of a drag) and ``label``, each None if there is none.
    """
    if action is None:
        return None
    point, to, label = _pair(info.get("point")), None, None
    fields = _fields(action)
    if fields is not None:
        point = _pair(fields.get("point", fields.get("coordinate"))) or point
        to = _pair(fields.get("to", fields.get("coordinate2")))
        label = str(fields.get("input_text", fields.get("text")) or "")
        label = None if label in ("", "none") else label
    elif match := _DRAG.fullmatch(action):
        point, to = [float(match[1]), float(match[2])], [float(match[3]), float(match[4])]
    elif match := _TYPED.fullmatch(action):
        label = match[1]
    elif match := _POINTED.fullmatch(action):
        point = [float(match[2]), float(match[3])]
    found = {"point": point, "to": to, "label": label}
    return found if any(value is not None for value in found.values()) else None


def _fields(action: str) -> dict[str, Any] | None:
    try:
        value = json.loads(action)
    except (ValueError, RecursionError):
        return None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if isinstance(value, dict) else None


def _pair(value: Any) -> list[float] | None:
    """Two numbers on a screen, from a list or a text."""
    if isinstance(value, str):
        value = re.findall(r"-?\d+(?:\.\d+)?", value)
    try:
        x, y = (float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return [x, y] if 0 <= x < 1e5 and 0 <= y < 1e5 else None
