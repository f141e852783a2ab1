"""Experts for MiniWoB: from the instruction and the elements that the agent sees too, the commands that are best now.

An expert keeps nothing in mind: it reads from the page what has been done. It names every command that is as good as
its first one (any of the boxes that are still to be ticked), and none where it does not know how to go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from agentgym.envs import miniwob_experts_inbox as inbox
from agentgym.envs import miniwob_experts_search as search
from agentgym.envs.miniwob_page import Page, quoted

Expert = Callable[[str, Page], list[str]]


def _button(goal: str, page: Page) -> list[str]:
    return page.click(kind="button", text=quoted(goal)[0])


def _submit(page: Page) -> list[str]:
    return page.click(kind="button", text=re.compile("submit|login|ok|search", re.IGNORECASE))


def _fill(page: Page, wanted: Iterable[tuple[str, str]]) -> list[str]:
    """Type what is not yet there into the fields with these ids; any order is right."""
    left = [(page.find(id=name), text) for name, text in wanted]
    return [f"type {field.number} {text}" for field, text in left if field and field.value != text] or _submit(page)


def _only_field(value: Callable[[str, Page], str]) -> Expert:
    """Type something into the only field, and submit."""

    def expert(goal: str, page: Page) -> list[str]:
        field = page.find(kind=re.compile("textbox|date|time|number"))
        text = value(goal, page)
        if field is None:
            return []
        typed = f'"{text}"' if text != text.strip() else text  # quotation marks keep the spaces at its ends
        return _submit(page) if field.value == _shown(field.kind, text) else [f"type {field.number} {typed}"]

    return expert


def _shown(kind: str, text: str) -> str:
    """The value that a field has when this has been typed."""
    if kind == "date":
        month, day, year = text.split("/")
        return f"{year}-{month}-{day}"
    if kind == "time":
        clock, half = text.split()
        hour, minute = map(int, clock.split(":"))
        return f"{hour % 12 + 12 * (half == 'PM'):02d}:{minute:02d}"
    return text


def _ticked(goal: str, page: Page) -> list[str]:
    """Tick the boxes that the instruction names and no others, and submit."""
    names = re.sub(r"^Select | and click Submit\.$", "", goal)
    wanted = set() if names == "nothing" else set(names.split(", "))
    boxes = page.all(kind=re.compile("checkbox|radio"))
    left = [box for box in boxes if ("checked" in box.flags) != (box.text in wanted)]
    return [f"click {box.number}" for box in left if box.kind == "checkbox" or box.text in wanted] or _submit(page)


def _listed(goal: str, page: Page) -> list[str]:
    """Choose from a list that opens."""
    wanted = re.sub(r"^Select | from the list and click Submit\.$", "", goal)
    chooser = page.find(kind="select")
    if chooser is not None and chooser.value == wanted:
        return _submit(page)
    return page.click(kind="option", text=wanted) or page.click(kind="select")


def _scrolled(goal: str, page: Page) -> list[str]:
    wanted = re.sub(r"^Select | from the scroll list and click Submit\.$", "", goal).split(", ")
    options = [option for option in page.all(kind="option") if option.text in wanted]
    return [f"click {option.number}" for option in options if "checked" not in option.flags] or _submit(page)


def _sequence(goal: str, page: Page) -> list[str]:
    first, second = page.find(kind="button", text="ONE"), page.find(kind="button", text="TWO")
    chosen = second if first and "focused" in first.flags else first
    return [f"click {chosen.number}"] if chosen else []


def _login(goal: str, page: Page) -> list[str]:
    user, password = quoted(goal)
    return _fill(page, [("username", user), ("password", password)])


def _password(goal: str, page: Page) -> list[str]:
    return _fill(page, [("password", quoted(goal)[0]), ("verify", quoted(goal)[0])])


def _cased(goal: str, page: Page) -> str:
    return quoted(goal)[0].upper() if "upper" in goal else quoted(goal)[0].lower()


def _sum(goal: str, page: Page) -> str:
    """The value of ``a + b =``, or the x of ``a + x = b``."""
    left, right = next(e.text for e in page.elements if "=" in e.text).split("=")
    one, sign, other = re.split(r"\s([+x-]|−)\s", left.strip(), maxsplit=1) if "x" not in right else ("", "", "")
    if right.strip() in ("", "?"):
        a, b = int(one), int(other)
        return str({"+": a + b, "-": a - b, "x": a * b}[sign])
    total = int(right)
    if other == "x":
        return str({"+": total - int(one), "-": int(one) - total}[sign])
    return str({"+": total - int(other), "-": total + int(other)}[sign])


def _table(page: Page, label: str) -> str:
    """The cell beside a label in a table of two columns."""
    texts = [e.text for e in page.elements if e.kind == "text"]
    return texts[texts.index(label) + 1]


def _tables(goal: str, page: Page) -> list[str]:
    labels = [e.text.removesuffix(":") for e in page.elements if e.text.endswith(":")]
    return _fill(page, [(f"tt{k}", _table(page, label)) for k, label in enumerate(labels, start=1)])


def _copied(goal: str, page: Page) -> str:
    found = re.search(r"the (\d)\w\w text area", goal)
    area = page.find(id=f"text-{found[1]}" if found else "to-copy")
    return (area.value or "") if area else ""


def _word(goal: str, page: Page) -> str:
    words = next(e.text for e in page.elements if e.kind == "text").split()
    return words[int(re.findall(r"\d+", goal)[0]) - 1].strip(".,")


def _parity(goal: str, page: Page) -> list[str]:
    left = []
    rows = [e for e in page.elements if e.text in ("Odd", "Even") or re.fullmatch(r"-?\d+", e.text)]
    for odd, number, even in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        right = even if int(number.text) % 2 == 0 else odd
        left += [f"click {right.number}"] if "active" not in right.flags else []
    return left or _submit(page)


def _nth_field(goal: str, page: Page) -> list[str]:
    found = re.search(r"(\d)\w\w", goal)
    fields = page.all(kind="textbox")
    return [f"click {fields[int(found[1]) - 1 if found else 0].number}"]


def _form(goal: str, page: Page) -> list[str]:
    """A radio button by its place, and a number into a field by its place."""
    radio, text, field = re.findall(r'(\d)\w\w radio button .*"(-?\d+)" into the (\d)', goal)[0]
    choice = page.all(kind="radio")[int(radio) - 1]
    place = page.find(id=f"input-{field}")
    left = [] if "checked" in choice.flags else [f"click {choice.number}"]
    if place and place.value != text:
        left.append(f"type {place.number} {text}")
    return left or _submit(page)


def _movie(goal: str, page: Page) -> list[str]:
    """Three fields, each before or after its label, in any order."""
    genre, director, year = re.findall(r"Search for (\S+) movies directed by (\S+) from year (\d+)", goal)[0]
    wanted = {"genre": genre, "director": director, "year|date": year}
    rows = [e for e in page.elements if e.typed or re.search("genre|director|year|date", e.text, re.IGNORECASE)]
    pairs = [(row, other) if other.typed else (other, row) for row, other in zip(rows[::2], rows[1::2], strict=True)]
    left = []
    for label, field in pairs:
        text = next(text for name, text in wanted.items() if re.search(name, label.text, re.IGNORECASE))
        left += [f"type {field.number} {text}"] if field.value != text else []
    return left or page.click(text=re.compile("^(Submit|Search|Go!)$"))


def _widget(goal: str, page: Page) -> list[str]:
    kind = {"text": "textbox"}.get(quoted(goal)[0], quoted(goal)[0])
    return page.click(kind=kind)


def _coordinate(goal: str, page: Page) -> list[str]:
    return page.click(id=re.findall(r"\(.*\)", goal)[0])


def _colour(goal: str, page: Page) -> list[str]:
    wanted = re.findall(r"the (\w+) colored", goal)[0]
    names = {"aqua": "aqua", "cyan": "aqua", "gray": "grey", "fuchsia": "magenta"}
    return [
        f"click {e.number}" for e in page.elements if e.colour == names.get(wanted, wanted) and "color" in e.classes
    ]


def _cheapest(goal: str, page: Page) -> list[str]:
    """The ticket with the least or the most of something."""
    books = page.all(kind="button", text=re.compile("Book"))
    times = [e.text for e in page.elements if re.fullmatch(r"\d+h \d+m", e.text)]
    minutes = [60 * int(h) + int(m) for h, m in (re.findall(r"\d+", text) for text in times)]
    prices = [int(re.findall(r"\d+", e.text)[0]) for e in books]
    values = prices if re.search("cost|price|cheap|expensive", goal) else minutes
    best = (max if re.search("most|longest|highest", goal) else min)(values)
    return [f"click {e.number}" for e, value in zip(books, values, strict=True) if value == best]


def _delayed(goal: str, page: Page) -> list[str]:
    first = page.find(kind="button", text="ONE")
    return _sequence(goal, page) if first and "focused" not in first.flags else ["wait"]


def _inside(goal: str, page: Page) -> list[str]:
    """Drag the small box into the large one, unless it is there."""
    small, large = page.find(text="s"), page.find(text="L")
    if small is None or large is None:
        return []
    inside = all(abs(small.box[k] - large.box[k]) < (large.box[k + 2] - small.box[k + 2]) / 2 for k in (0, 1))
    return _submit(page) if inside else [f"drag {small.number} {large.number}"]


def _spinner(goal: str, page: Page) -> list[str]:
    field, wanted = page.find(id="spinner"), int(re.findall(r"-?\d+", goal)[0])
    value = int(field.value or 0) if field else 0
    return _submit(page) if value == wanted else page.click(classes=re.compile("up" if value < wanted else "down"))


EXPERTS: dict[str, Expert] = {
    **dict.fromkeys(("click-button", "unicode-test"), _button),
    **dict.fromkeys(
        ("click-test", "click-test-2", "click-test-transfer"), lambda goal, page: page.click(kind="button")
    ),
    "click-link": lambda goal, page: page.click(kind="link", text=quoted(goal)[0]),
    "click-dialog": lambda goal, page: page.click(kind="button", text="Close"),
    "click-dialog-2": lambda goal, page: page.click(
        kind="button", text={"x": "Close"}.get(quoted(goal)[0], quoted(goal)[0])
    ),
    "click-tab": lambda goal, page: page.click(kind="link", text=re.findall(r"Tab #\d", goal)[0]),
    "click-widget": _widget,
    "click-color": _colour,
    "grid-coordinate": _coordinate,
    "buy-ticket": _cheapest,
    **dict.fromkeys(("focus-text", "focus-text-2"), _nth_field),
    "click-button-sequence": _sequence,
    **dict.fromkeys(("enter-text", "enter-text-dynamic"), _only_field(lambda goal, page: quoted(goal)[0])),
    "enter-text-2": _only_field(_cased),
    "enter-date": _only_field(lambda goal, page: re.findall(r"\d+/\d+/\d+", goal)[0]),
    "enter-time": _only_field(lambda goal, page: re.findall(r"\d+:\d+ [AP]M", goal)[0]),
    "text-transform": _only_field(lambda goal, page: page.elements[0].text),
    **dict.fromkeys(("simple-arithmetic", "simple-algebra"), _only_field(_sum)),
    "read-table": _only_field(lambda goal, page: _table(page, re.findall(r"value of (.+) into", goal)[0])),
    **dict.fromkeys(("copy-paste", "copy-paste-2"), _only_field(_copied)),
    "find-word": _only_field(_word),
    "use-spinner": _spinner,
    "read-table-2": _tables,
    "click-option": _ticked,
    **dict.fromkeys(("click-checkboxes", "click-checkboxes-large", "click-checkboxes-transfer"), _ticked),
    "choose-list": _listed,
    "click-scroll-list": _scrolled,
    "login-user": _login,
    "enter-password": _password,
    "form-sequence-2": _form,
    **dict.fromkeys(("multi-layouts", "multi-orderings"), _movie),
    "odd-or-even": _parity,
    "drag-box": _inside,
    **inbox.EXPERTS,
    **search.EXPERTS,
}

STEPS: dict[str, int] = {
    **dict.fromkeys(
        (
            *("buy-ticket", "click-button", "click-color", "click-dialog", "click-dialog-2", "click-link", "click-tab"),
            *("click-test", "click-test-2", "click-test-transfer", "click-widget", "email-inbox-delete"),
            *("email-inbox-important", "focus-text", "focus-text-2", "grid-coordinate", "unicode-test"),
        ),
        1,
    ),
    **dict.fromkeys(
        (
            *("click-button-sequence", "click-collapsible", "click-collapsible-nodelay", "click-option", "copy-paste"),
            *("copy-paste-2", "enter-date", "enter-text", "enter-text-2", "enter-text-dynamic", "enter-time"),
            *("find-word", "read-table", "simple-algebra", "simple-arithmetic", "text-transform"),
        ),
        2,
    ),
    **dict.fromkeys(("enter-password", "form-sequence-2", "login-user", "read-table-2"), 3),
    **dict.fromkeys(("email-inbox-forward", "email-inbox-reply", "multi-layouts", "multi-orderings", "odd-or-even"), 4),
}
"""How many steps an expert takes, where it is as many in every episode; elsewhere it must be played to know."""
