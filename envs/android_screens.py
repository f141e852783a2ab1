"""Simple screens of a phone: drawn as a picture, and told as an accessibility tree, from the same layout."""

from __future__ import annotations

import colorsys
import functools
import io
import zlib
from dataclasses import dataclass
from typing import Any

from agentgym.envs.android_control_tree import Box, Node, Window, write_forest

from agentgym.errors import missing

PACKAGE = "org.example"
ROWS = 7
"""Rows of a list that fit on a screen."""

_UNITS = 48
_PAPER, _INK, _FAINT, _LINE, _BLUE, _WHITE = "#fafafa", "#202124", "#757575", "#dadce0", "#1a73e8", "#ffffff"


_DESCRIBED = {"icon": "ImageButton", "photo": "ImageView", "spinner": "ProgressBar"}
_SEEN = frozenset(("visible", "enabled"))


@dataclass(frozen=True)
class Widget:
    """A part of a screen.

    Attributes:
        kind: ``row``, ``toggle``, ``field``, ``button``, ``icon``, ``app``, ``photo``, ``note`` or ``spinner``.
        label: What is written on it, by which it is found.
        text: What was typed into a field.
        on: Whether a toggle is on, or a field has the focus.
    """

    kind: str
    label: str
    text: str = ""
    on: bool = False


@dataclass(frozen=True)
class Screen:
    """What a screen shows, without a place yet.

    Attributes:
        title: In the bar at the top; empty on the home screen.
        icons: At the right of the bar.
        body: Below it, from top to bottom.
        scrolls: Whether there is more than what is shown.
        keyboard: Whether the keyboard is open.
    """

    title: str
    icons: tuple[Widget, ...] = ()
    body: tuple[Widget, ...] = ()
    scrolls: bool = False
    keyboard: bool = False


def layout(screen: Screen, width: int, height: int) -> list[tuple[Widget, Box]]:
    """Where the widgets of a screen are, in pixels."""
    unit = height / _UNITS
    placed = []
    for number, icon in enumerate(screen.icons, start=1):
        placed.append(
            (icon, _box(width - number * 4.4 * unit, 2.2 * unit, width - (number * 4.4 - 3.6) * unit, 5 * unit))
        )
    top, apps = 6.0 * unit, 0
    for widget in screen.body:
        if widget.kind == "app":
            column, row = apps % 3, apps // 3
            apps += 1
            side = width / 3
            box = _box(column * side + unit, (6 + row * 9) * unit, (column + 1) * side - unit, (14 + row * 9) * unit)
        else:
            tall = {"photo": 24, "note": 3, "spinner": 8}.get(widget.kind, 4.4)
            margin = 0 if widget.kind in ("row", "toggle") else unit
            box = _box(margin, top, width - margin, top + tall * unit)
            top += (tall + (0 if margin == 0 else 0.8)) * unit
        placed.append((widget, box))
    return placed


def grip(widget: Widget, box: Box) -> Box:
    """Where a finger goes to touch a widget: of a row, its text."""
    return _left(box) if widget.kind in ("row", "toggle") else box


def tree(screen: Screen, width: int, height: int) -> bytes:
    """The accessibility forest of a screen: app, keyboard if it is open, and status bar."""
    unit = height / _UNITS
    whole, bar = Box(0, 0, width, height), _box(0, 1.6 * unit, width, 5.6 * unit)
    nodes: list[Node] = []

    def add(box: Box, view: str, flags: str = "", **parts: Any) -> int:
        named = _SEEN.union(flags.split())
        nodes.append(Node(len(nodes) + 1, box, f"android.widget.{view}", package=PACKAGE, flags=named, **parts))
        return len(nodes)

    top = [add(bar, "TextView", text=screen.title, view_id=f"{PACKAGE}:id/title")] if screen.title else []
    body: list[int] = []
    for widget, box in layout(screen, width, height):
        kind, label = widget.kind, widget.label
        if kind in ("row", "toggle"):
            children = [add(_left(box), "TextView", text=label)]
            if kind == "toggle":
                children.append(add(_right(box), "Switch", "checkable checked" if widget.on else "checkable"))
            flags = "clickable long_clickable" if kind == "row" else "clickable"
            number = add(box, "LinearLayout", flags, children=tuple(children))
        elif kind == "field":
            flags = "clickable editable focusable" + " focused" * widget.on
            number = add(box, "EditText", flags, text=widget.text, hint=label)
        elif kind in _DESCRIBED:
            number = add(box, _DESCRIBED[kind], "clickable" if kind == "icon" else "", description=label)
        else:
            number = add(
                box, "Button" if kind == "button" else "TextView", "" if kind == "note" else "clickable", text=label
            )
        (top if kind == "icon" else body).append(number)
    below, view = Box(0, bar.bottom, width, height), "RecyclerView" if screen.scrolls else "FrameLayout"
    top.append(add(below, view, "scrollable" if screen.scrolls else "", children=tuple(body)))
    add(whole, "FrameLayout", children=tuple(top))
    windows = [Window((nodes[-1], *nodes[:-1]), whole, 1, 1, screen.title or "Home")]
    if screen.keyboard:
        keys = _keyboard(width, height)
        node = Node(1, keys, "android.view.View", description="Keyboard", flags=_SEEN)
        windows.append(Window((node,), keys, 2, 2, "Keyboard"))
    clock = Node(1, _box(0, 0, width, 1.6 * unit), "android.widget.TextView", text="9:41", flags=_SEEN)
    windows.append(Window((clock,), clock.box, 3, 3, "Status bar"))
    return write_forest(windows)


def picture(screen: Screen, width: int, height: int) -> bytes:
    """A screen as a PNG file.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise missing("Pillow", "gui") from error
    unit = height / _UNITS
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, 1.6 * unit), fill=_INK)
    _write(draw, "9:41", unit * 0.6, unit * 0.8, unit * 1.1, _WHITE)
    if screen.title:
        draw.rectangle((0, 1.6 * unit, width, 5.6 * unit), fill=_BLUE)
        _write(draw, screen.title, unit, 3.6 * unit, unit * 1.7, _WHITE)
    for widget, box in layout(screen, width, height):
        _draw(draw, widget, box, unit)
    if screen.keyboard:
        keys = _keyboard(width, height)
        draw.rectangle(keys, fill=_LINE)
        for row, letters in enumerate(("qwertyuiop", "asdfghjkl", "zxcvbnm")):
            for place, letter in enumerate(letters):
                _write(
                    draw,
                    letter,
                    width * (place + 0.3 + row * 0.4) / 10,
                    keys.top + (2 + row * 3) * unit,
                    unit * 1.4,
                    _INK,
                )
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _draw(draw: Any, widget: Widget, box: Box, unit: float) -> None:
    kind, middle = widget.kind, (box.top + box.bottom) / 2
    if kind in ("row", "toggle"):
        draw.line((box.left, box.bottom - 1, box.right, box.bottom - 1), fill=_LINE)
        _write(draw, widget.label, box.left + unit, middle, unit * 1.5, _INK)
        if kind == "toggle":
            track = _right(box)
            draw.rounded_rectangle(track, radius=unit, fill=_BLUE if widget.on else _LINE)
            x = track.right - unit if widget.on else track.left + unit
            draw.ellipse((x - unit * 0.8, middle - unit * 0.8, x + unit * 0.8, middle + unit * 0.8), fill=_WHITE)
    elif kind == "field":
        draw.rectangle(box, outline=_BLUE if widget.on else _FAINT, width=2 if widget.on else 1)
        _write(draw, widget.text or widget.label, box.left + unit, middle, unit * 1.5, _INK if widget.text else _FAINT)
    elif kind == "button":
        draw.rounded_rectangle(box, radius=unit, fill=_BLUE)
        _write(draw, widget.label, sum(box[::2]) / 2, middle, unit * 1.5, _WHITE, "mm")
    elif kind == "icon":
        draw.ellipse(box, outline=_WHITE, width=1)
        _write(draw, widget.label[0], sum(box[::2]) / 2, middle, unit * 1.5, _WHITE, "mm")
    elif kind == "spinner":
        x = sum(box[::2]) / 2
        draw.arc((x - 2 * unit, middle - 2 * unit, x + 2 * unit, middle + 2 * unit), 0, 270, fill=_BLUE, width=3)
        _write(draw, widget.label, x, box.bottom - unit, unit * 1.4, _FAINT, "mm")
    elif kind in ("app", "photo"):
        tall = box.bottom - (2.4 * unit if kind == "app" else 0)
        draw.rounded_rectangle((box.left, box.top, box.right, tall), radius=unit, fill=_colour(widget.label))
        size, y = (1.4, box.bottom - unit) if kind == "app" else (2.4, middle)
        _write(draw, widget.label, sum(box[::2]) / 2, y, unit * size, _INK, "mm")
    else:
        _write(draw, widget.label, box.left, middle, unit * 1.4, _FAINT)


def _write(draw: Any, text: str, x: float, y: float, size: float, colour: str, anchor: str = "lm") -> None:
    draw.text((x, y), text, fill=colour, anchor=anchor, font=_font(max(6, round(size))))


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _colour(label: str) -> str:
    red, green, blue = colorsys.hsv_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.45, 0.95)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _keyboard(width: int, height: int) -> Box:
    return Box(0, round(height * 0.72), width, height)


def _left(box: Box) -> Box:
    return box._replace(right=box.left + round((box.right - box.left) * 0.75))


def _right(box: Box) -> Box:
    tall = box.bottom - box.top
    return Box(box.right - round(tall * 1.2), box.top + tall // 4, box.right - tall // 4, box.bottom - tall // 4)


def _box(*sides: float) -> Box:
    return Box(*map(round, sides))
