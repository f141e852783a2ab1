"""Accessibility trees of Android screens: read, written, and told as a short list.

Source: the messages of ``android_env/proto/a11y`` (AndroidAccessibilityForest).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agentgym.envs import android_control_wire as wire

MOST_ELEMENTS = 120
"""Elements of a screen that are told; the others are counted."""
_LONGEST_LABEL = 80
_FLAGS = {
    **{"checkable": 12, "checked": 13, "clickable": 14, "editable": 15, "enabled": 16, "focusable": 17, "focused": 18},
    **{"long_clickable": 19, "password": 20, "scrollable": 21, "selected": 22, "visible": 23},
}
_TEXTS = {"class_name": 3, "description": 4, "hint": 5, "package": 6, "text": 7, "view_id": 10}
_SHOWN = ("checked", "selected", "focused", "scrollable", "long_clickable")
_ACTIONABLE = frozenset(("clickable", "editable", "checkable", "scrollable", "long_clickable"))


class Box(NamedTuple):
    """A rectangle on the screen in pixels, without its right and bottom edge."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def centre(self) -> tuple[int, int]:
        """The middle."""
        return (self.left + self.right) // 2, (self.top + self.bottom) // 2

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.right <= self.left or self.bottom <= self.top


@dataclass(frozen=True)
class Node:
    """A node of a window's tree.

    Attributes:
        id: ``unique_id``.
        box: ``bounds_in_screen``.
        class_name: Such as ``android.widget.Button``.
        text: What it shows.
        description: ``content_description``.
        hint: What an empty field shows.
        package: Of the app.
        view_id: ``view_id_resource_name``.
        flags: Names of what it is, such as ``clickable``.
        children: Ids, in their order.
    """

    id: int
    box: Box
    class_name: str = ""
    text: str = ""
    description: str = ""
    hint: str = ""
    package: str = ""
    view_id: str = ""
    flags: frozenset[str] = frozenset()
    children: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """A window: the nodes of its tree, the root first, and what it is.

    Attributes:
        nodes: All of them.
        box: Where it is.
        kind: ``window_type``: 1 an app, 2 a keyboard, 3 the system.
        layer: Its place above others.
        title: Its name.
    """

    nodes: tuple[Node, ...]
    box: Box
    kind: int = 1
    layer: int = 0
    title: str = ""


class Element(NamedTuple):
    """What of a node is told and scored.

    Attributes:
        box: Where it is.
        label: Its text, description or hint, or the texts inside it.
        role: Last part of its class name, such as ``Button``.
        state: Those of its flags that are told.
        told: Whether it is in the list.
        leaf: Whether it has no children.
    """

    box: Box
    label: str
    role: str
    state: tuple[str, ...]
    told: bool
    leaf: bool

    def to_json(self) -> list[Any]:
        """As JSON values."""
        return [list(self.box), self.label, self.role, list(self.state), self.told, self.leaf]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Element:
        """Read what `to_json` wrote."""
        box, label, role, state, told, leaf = value
        return cls(Box(*box), label, role, tuple(state), told, leaf)


def read_forest(data: bytes) -> list[Window]:
    """Read a serialised ``AndroidAccessibilityForest``.

    Raises:
        agentgym.envs.android_control_wire.WireError: It is none.
    """
    return [_window(wire.blob(value)) for number, value in wire.fields(data) if number == 1]


def _window(data: bytes) -> Window:
    found: dict[int, wire.Value] = dict(wire.fields(data))
    tree = wire.blob(found.get(11, memoryview(b"")))
    return Window(
        nodes=tuple(_node(wire.blob(value)) for number, value in wire.fields(tree) if number == 1),
        box=_box(found.get(1)),
        kind=wire.signed(found.get(6, 0)),
        layer=wire.signed(found.get(4, 0)),
        title=wire.text(found.get(5, memoryview(b""))),
    )


def _node(data: bytes) -> Node:
    found: dict[int, wire.Value] = {}
    children: list[int] = []
    for number, value in wire.fields(data):
        if number == 25:
            children += wire.numbers(value)
        else:
            found[number] = value
    return Node(
        id=wire.signed(found.get(1, 0)),
        box=_box(found.get(2)),
        flags=frozenset(name for name, number in _FLAGS.items() if found.get(number)),
        children=tuple(children),
        **{name: wire.text(found[number]) for name, number in _TEXTS.items() if number in found},
    )


def _box(value: wire.Value | None) -> Box:
    sides = dict(wire.fields(wire.blob(value))) if value is not None else {}
    return Box(*(wire.signed(sides.get(number, 0)) for number in (1, 2, 3, 4)))


def write_forest(windows: Iterable[Window]) -> bytes:
    """A serialised ``AndroidAccessibilityForest``; `read_forest` reads it back."""
    written = []
    for window in windows:
        tree = b"".join(wire.field(1, _written(node)) for node in window.nodes)
        parts = [wire.field(1, _sides(window.box)), wire.field(4, window.layer), wire.field(5, window.title)]
        written.append(wire.field(1, b"".join([*parts, wire.field(6, window.kind), wire.field(11, tree)])))
    return b"".join(written)


def _written(node: Node) -> bytes:
    parts = [wire.field(1, node.id), wire.field(2, _sides(node.box))]
    parts += [wire.field(number, value) for name, number in _TEXTS.items() if (value := getattr(node, name))]
    parts += [wire.field(number, 1) for name, number in _FLAGS.items() if name in node.flags]
    return b"".join([*parts, wire.packed(25, node.children)] if node.children else parts)


def _sides(box: Box) -> bytes:
    return b"".join(wire.field(number, side) for number, side in enumerate(box, start=1) if side)


def elements(windows: Iterable[Window], width: int, height: int) -> list[Element]:
    """The elements of a screen that can be seen: leaves, and what can be acted on; the topmost window first.

    Args:
        windows: Of the screen.
        width: Of the screen, in pixels.
        height: Of the screen, in pixels.
    """
    screen = Box(0, 0, width, height)
    ordered = sorted(windows, key=lambda window: -window.layer)
    return [element for window in ordered for element in _elements(window.nodes, screen)]


def _elements(nodes: Sequence[Node], screen: Box) -> Iterator[Element]:
    by_id = {node.id: node for node in nodes}
    inside = {child for node in nodes for child in node.children}
    # With the action of a parent goes what is written on its children, which need no line of their own then.
    stack = [(node, False) for node in reversed(nodes) if node.id not in inside]
    seen: set[int] = set()
    while stack:
        node, named = stack.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        children = [by_id[child] for child in node.children if child in by_id]
        box = Box(*map(max, node.box[:2], screen[:2]), *map(min, node.box[2:], screen[2:]))
        actionable = not _ACTIONABLE.isdisjoint(node.flags)
        own, joined = _label(node), ""
        if not own and node.flags & {"clickable", "checkable", "long_clickable"}:
            joined = ", ".join(_texts(children, by_id))
        label = " ".join((own or joined).split())[:_LONGEST_LABEL]
        if "visible" in node.flags and not box.empty and (actionable or not children):
            state = tuple(name for name in _SHOWN if name in node.flags)
            if "enabled" not in node.flags and actionable:
                state += ("disabled",)
            told = actionable or (bool(label) and not named)
            yield Element(box, label, node.class_name.rpartition(".")[2], state, told, not children)
        stack += [(child, named or bool(joined)) for child in reversed(children)]


def _label(node: Node) -> str:
    return (node.text or node.description or node.hint).strip()


def _texts(children: Iterable[Node], by_id: dict[int, Node]) -> Iterator[str]:
    """What is written on nodes and inside them, except on those that can be clicked themselves."""
    stack, steps = list(children)[::-1], 0
    while stack and steps < 1000:
        node, steps = stack.pop(), steps + 1
        if "clickable" in node.flags:
            continue
        if label := _label(node):
            yield label
        else:
            stack += [by_id[child] for child in reversed(node.children) if child in by_id]


def moved(element: Element, x: float, y: float) -> Element:
    """An element on a screen that is wider by the factor ``x`` and taller by ``y``."""
    left, top, right, bottom = element.box
    return element._replace(box=Box(round(left * x), round(top * y), round(right * x), round(bottom * y)))


def told(screen: Iterable[Element]) -> str:
    """The elements as a numbered list, each with its role, label, middle and state."""
    listed = [element for element in screen if element.told]
    lines = []
    for number, element in enumerate(listed[:MOST_ELEMENTS], start=1):
        label = f' "{element.label}"' if element.label else ""
        state = f" ({', '.join(name.replace('_', ' ') for name in element.state)})" if element.state else ""
        lines.append(
            f"{number}. {element.role or 'View'}{label} [{element.box.centre[0]}, {element.box.centre[1]}]{state}"
        )
    if (more := len(listed) - MOST_ELEMENTS) > 0:
        lines.append(f"({more} more)")
    return "\n".join(lines)
