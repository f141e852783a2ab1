"""Errands on a made-up phone, and the shortest way to do them: what the synthetic recordings are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from agentgym.envs.android_screens import ROWS, Screen, Widget

_APPS = ("Calendar", "Contacts", "Gallery", "Mail", "Notes", "Settings", "Shop", "Tasks", "Travel")
_FORMS = {
    "Calendar": ("event", ("Title", "Place", "Guest")),
    "Contacts": ("contact", ("Name", "City", "Company")),
    "Mail": ("mail", ("To", "Subject", "Text")),
    "Notes": ("note", ("Title", "Text", "Label")),
    "Tasks": ("task", ("Title", "Owner", "Project")),
}
_LISTS = ("Shop", "Travel", "Notes", "Tasks", "Contacts")
_SECTIONS = {
    "Display": "Adaptive colours,Auto rotate,Dark theme,Eye comfort,Large text,Magnifier,Night light,Screen saver,"
    "Smooth scrolling,Touch sounds,Wake on tap,Wide colours",
    "Network": "Airplane mode,Auto connect,Bluetooth,Data saver,Ethernet,Hotspot,Location,Mobile data,Nearby share,"
    "Private DNS,Roaming,VPN,Wi-Fi",
    "Sound": "Alarm volume,Call alerts,Charging sounds,Dial pad tones,Do not disturb,Equalizer,Live caption,Media,"
    "Mono audio,Screen lock sound,Silent hours,Touch vibration,Vibrate first",
}
_WORDS_TEXT = (
    "Amber Apricot Banjo Basil Birch Canyon Cedar Clover Comet Copper Coral Daisy Delta Ember Fern Fjord Garnet Ginger "
    "Harbor Hazel Indigo Iris Ivory Jasper Juniper Kettle Lagoon Lemon Lilac Linen Maple Marble Meadow Mint Nectar "
    "Nutmeg Olive Onyx Orchid Pebble Pepper Pine Plum Quartz Quince Raven River Saffron Sage Silver Thistle Topaz "
    "Tulip Umber Velvet Violet Walnut Willow Yarrow Zephyr"
)
_WORDS = tuple(_WORDS_TEXT.split())
_HOME = Screen("", body=tuple(Widget("app", name) for name in _APPS))


@dataclass
class Step:
    """An action on a screen; ``target`` is the label of the widget at which it happens."""

    screen: Screen
    kind: str
    why: str
    target: str = ""
    text: str = ""


@dataclass
class Task:
    """An episode in the making."""

    steps: list[Step] = field(default_factory=list)
    goal: list[str] = field(default_factory=list)
    last: Screen = _HOME

    def do(self, screen: Screen, kind: str, why: str, target: str = "", text: str = "") -> None:
        """Add an action."""
        self.steps.append(Step(screen, kind, why, target, text))


def draw_task(rng: np.random.Generator, length: int) -> Task:
    """Errands that take exactly this many actions; drawn until some do."""
    while True:
        task = Task()
        inside = bool(rng.random() < 0.4)
        for number in range(int(rng.integers(1, 4))):
            errand = (_switch, _fill, _remove, _find, _browse)[int(rng.integers(5))]
            errand(task, rng, number > 0 or not inside)
        if rng.random() < 0.25:
            task.do(task.last, "navigate_home", "Go to the home screen")
            task.goal.append("go to the home screen")
            task.last = _HOME
        if len(task.steps) == length:
            return task


def _open(task: Task, app: str, opened: bool) -> str:
    """Open an app, if it is not open already; returns where the errand happens, in words."""
    if opened:
        task.do(task.last, "open_app", f"Open the {app} app", text=app)
    return f"in the {app} app"


def _switch(task: Task, rng: np.random.Generator, opened: bool) -> None:
    section = _one(rng, sorted(_SECTIONS))
    names = _SECTIONS[section].split(",")
    on = {name: bool(rng.random() < 0.5) for name in names}
    target = _one(rng, names)
    where, verb = _open(task, "Settings", opened), "off" if on[target] else "on"
    task.goal.append(f"{where}, turn {verb} {target} under {section}")
    if opened or rng.random() < 0.5:
        body = tuple(Widget("row", name) for name in sorted(_SECTIONS))
        task.do(Screen("Settings", body=body), "click", f"Click on {section}", section)

    def page(number: int) -> Screen:
        return _page(section, [Widget("toggle", name, on=on[name]) for name in names], number)

    number = _scroll_to(task, page, 0, names.index(target) // ROWS, f"to find {target}")
    task.do(page(number), "click", f"Turn {verb} {target}", target)
    on[target] = not on[target]
    task.last = page(number)


def _fill(task: Task, rng: np.random.Generator, opened: bool) -> None:
    app = _one(rng, sorted(_FORMS))
    thing, labels = _FORMS[app]
    used = labels[: int(rng.integers(1, 4))]
    values = {label: _phrase(rng) for label in used}
    where = _open(task, app, opened)
    task.goal.append(f"{where}, add a new {thing} with " + " and ".join(f"{k.lower()} {v}" for k, v in values.items()))
    main = _page(app, [Widget("row", name) for name in _names(rng, ROWS)], 0, icons=(Widget("icon", f"New {thing}"),))
    task.do(main, "click", f"Click on the New {thing} button", f"New {thing}")
    typed: dict[str, str] = {}

    def form(focus: str = "") -> Screen:
        body = [Widget("field", label, typed.get(label, ""), label == focus) for label in labels]
        return Screen(f"New {thing}", body=(*body, Widget("button", "Save")), keyboard=bool(focus))

    for label in used:
        why = f"Type {values[label]} in the {label} field"
        task.do(form(next(reversed(typed), "")), "click", why, label)
        task.do(form(label), "input_text", why, text=values[label])
        typed[label] = values[label]
    task.do(form(used[-1]), "click", "Click on the Save button", "Save")
    task.last = replace(main, body=(Widget("row", values[used[0]]), *main.body[1:]))
    _maybe_wait(task, rng, app, "Saving")


def _remove(task: Task, rng: np.random.Generator, opened: bool) -> None:
    app = _one(rng, _LISTS)
    names = sorted(_names(rng, 2 * ROWS))
    target = _one(rng, names)
    where = _open(task, app, opened)
    task.goal.append(f"{where}, delete {target}")

    def page(number: int) -> Screen:
        return _page(app, [Widget("row", name) for name in names], number)

    start = 0 if opened else int(rng.integers(2))
    number = _scroll_to(task, page, start, names.index(target) // ROWS, f"to find {target}")
    task.do(page(number), "long_press", f"Press and hold {target}", target)
    asked = Screen(target, body=(Widget("button", "Delete"), Widget("button", "Share"), Widget("button", "Cancel")))
    task.do(asked, "click", "Click on the Delete button", "Delete")
    names.remove(target)
    task.last = page(number)


def _find(task: Task, rng: np.random.Generator, opened: bool) -> None:
    app = _one(rng, _LISTS)
    word = _one(rng, _WORDS)
    found = sorted({f"{word} {other}" for other in _names(rng, ROWS - 1) if other != word})
    target = _one(rng, found)
    where = _open(task, app, opened)
    task.goal.append(f"{where}, search for {word} and open {target}")
    icons = (Widget("icon", "Search"),)
    task.do(
        _page(app, [Widget("row", n) for n in _names(rng, ROWS)], 0, icons),
        "click",
        "Click on the Search button",
        "Search",
    )
    empty = Screen("Search", body=(Widget("field", "Search here", on=True),), keyboard=True)
    task.do(empty, "input_text", f"Search for {word}", text=word)
    results = Screen("Search", body=(Widget("field", "Search here", word), *(Widget("row", name) for name in found)))
    task.last = results
    _maybe_wait(task, rng, "Search", "Searching")
    task.do(results, "click", f"Click on {target}", target)
    task.last = Screen(target, body=(Widget("photo", target), Widget("note", f"All about {target}")))
    if rng.random() < 0.3:
        task.goal.append("go back to the results")
        task.do(task.last, "navigate_back", "Go back to the results")
        task.last = results


def _browse(task: Task, rng: np.random.Generator, opened: bool) -> None:
    names = sorted(_names(rng, 4))
    target, start = (int(k) for k in rng.integers(len(names), size=2))
    where = _open(task, "Gallery", opened)
    task.goal.append(f"{where}, like the photo {names[target]} (the photos are {', '.join(names)})")

    def page(number: int, word: str = "Like") -> Screen:
        note = f"{names[number]}, {number + 1} of {len(names)}"
        return Screen(
            "Gallery", body=(Widget("photo", names[number]), Widget("note", note), Widget("button", word)), scrolls=True
        )

    while start != target:
        direction = "right" if start < target else "left"
        task.do(page(start), "scroll", f"Swipe to the photo {names[target]}", text=direction)
        start += 1 if start < target else -1
    task.do(page(target), "click", "Click on the Like button", "Like")
    task.last = page(target, "Liked")


def _maybe_wait(task: Task, rng: np.random.Generator, title: str, word: str) -> None:
    if rng.random() < 0.4:
        task.do(Screen(title, body=(Widget("spinner", word),)), "wait", f"Wait until {word.lower()} is over")


def _scroll_to(task: Task, page: Callable[[int], Screen], start: int, end: int, why: str) -> int:
    while start != end:
        direction = "down" if start < end else "up"
        task.do(page(start), "scroll", f"Scroll {direction} {why}", text=direction)
        start += 1 if start < end else -1
    return start


def _page(title: str, widgets: list[Widget], number: int, icons: tuple[Widget, ...] = ()) -> Screen:
    """A page of a list; the pages do not overlap."""
    shown = tuple(widgets[number * ROWS : (number + 1) * ROWS])
    return Screen(title, icons, shown, scrolls=len(widgets) > ROWS)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _names(rng: np.random.Generator, count: int) -> list[str]:
    return [_WORDS[int(k)] for k in rng.choice(len(_WORDS), count, replace=False)]


def _phrase(rng: np.random.Generator) -> str:
    return " ".join(_names(rng, int(rng.integers(1, 3))))
