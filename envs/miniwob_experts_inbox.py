"""Experts for the mail boxes and social media of MiniWoB."""

from __future__ import annotations

import re
from collections.abc import Callable

from agentgym.envs.miniwob_page import Page, quoted


def _open(page: Page, sender: str) -> list[str]:
    """Open the mail of a sender."""
    return [f"click {e.number}" for e in page.elements if e.text == sender][:1]


def _reading(page: Page) -> bool:
    return page.find(id="close-email") is not None


def _icon(page: Page, sender: str, icon: str) -> list[str]:
    """Click on an icon beside a mail of the list."""
    texts = [e.text for e in page.elements]
    if sender not in texts:
        return []
    after = page.elements[texts.index(sender) :]
    return [f"click {e.number}" for e in after if icon in e.classes.split()][:1]


def _write(page: Page, fields: list[tuple[str, str]]) -> list[str]:
    """Fill in what is to be sent, and send it."""
    for name, text in fields:
        field = next((e for e in page.elements if e.typed and (name in e.classes.split() or e.id == name)), None)
        if field is not None and field.value != text:
            return [f"type {field.number} {text}"]
    return page.click(id=re.compile("^send-"))


def _answer(page: Page, sender: str, text: str) -> list[str]:
    if page.find(id="reply-text"):
        return _write(page, [("reply-text", text)])
    return page.click(text="Reply") if _reading(page) else _open(page, sender)


def _forward(page: Page, sender: str, to: str) -> list[str]:
    if page.find(classes=re.compile("forward-sender")):
        return _write(page, [("forward-sender", to)])
    return page.click(text="Forward") if _reading(page) else _open(page, sender)


def _mail(goal: str, page: Page) -> list[str]:
    """Find the email by SENDER and ..."""
    sender = re.findall(r"email by (.+?) and ", goal)[0]
    if "reply" in goal:
        return _answer(page, sender, quoted(goal)[0])
    if "forward" in goal:
        return _forward(page, sender, re.findall(r"forward that email to (.+)\.$", goal)[0])
    return _icon(page, sender, "trash" if "trash" in goal else "star")


def _posts(page: Page, user: str, icon: str) -> list[list[str]]:
    """For each post of a user the click on an icon that has not been clicked."""
    found, mine = [], False
    for element in page.elements:
        if "@" in element.text:
            mine = user in element.text.split()
        elif mine and icon in element.classes.split():
            found.append([] if "active" in element.flags else [f"click {element.number}"])
    return found


_ICONS = {"Reply": "reply", "Retweet": "retweet", "Like": "like", "Share": "share"}


def _social(goal: str, page: Page) -> list[str]:
    """Click an icon of the posts of a user: of all, or of so many, and submit."""
    name = quoted(goal)[0]
    user = re.findall(r"@[\w-]+", goal)[0]
    posts = _posts(page, user, _ICONS[name])
    count = re.search(r"on (\d+) post", goal)
    wanted = int(count[1]) if count else len(posts)
    left = [command for commands in posts for command in commands]
    if len(posts) - len(left) < wanted:
        return left
    return page.click(kind="button", text="Submit") if len(posts) - len(left) == wanted else []


def _one_post(goal: str, page: Page) -> list[str]:
    """Click an icon of a user's post, or choose from the menu behind its last icon."""
    name, user = quoted(goal)[0], re.findall(r"@[\w-]+", goal)[0]
    if name in _ICONS and name != "Share":
        return [command for commands in _posts(page, user, _ICONS[name]) for command in commands][:1]
    items = [e for e in page.elements if e.text in (name, f"{name} {user}")]
    if items:
        return [f"click {items[0].number}"]
    return [command for commands in _posts(page, user, "more") for command in commands][:1]


EXPERTS: dict[str, Callable[[str, Page], list[str]]] = {
    **dict.fromkeys(
        (
            *("email-inbox", "email-inbox-noscroll", "email-inbox-delete", "email-inbox-forward"),
            *("email-inbox-important", "email-inbox-reply", "email-inbox-star-reply"),
        ),
        _mail,
    ),
    **dict.fromkeys(("social-media-all", "social-media-some"), _social),
    "social-media": _one_post,
}
