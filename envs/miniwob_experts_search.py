"""Experts for MiniWoB pages on which something has to be found first: tabs, sections, trees, pages of results."""

from __future__ import annotations

import re
from collections.abc import Callable

from agentgym.envs.miniwob_page import Page, quoted


def _tabs(goal: str, page: Page) -> list[str]:
    """Look through the tabs, one after the other, for a link."""
    tabs = page.all(kind="link", text=re.compile(r"^(Tab #)?\d$"))
    links = [e for e in page.all(kind="link", text=quoted(goal)[0]) if e not in tabs]
    if links:
        return [f"click {e.number}" for e in links]
    now = next((k for k, e in enumerate(tabs) if {"focused", "active"} & set(e.flags)), 0)
    return [f"click {tabs[now + 1].number}"] if now + 1 < len(tabs) else []


def _sections(goal: str, page: Page) -> list[str]:
    """Open the sections, one after the other, for a link."""
    if links := page.click(kind="link", text=quoted(goal)[0]):
        return links
    tabs = page.all(kind="tab")
    now = next((k for k, e in enumerate(tabs) if "active" in e.flags), -1)
    return [f"click {tabs[now + 1].number}"] if now + 1 < len(tabs) else []


def _section(goal: str, page: Page) -> list[str]:
    tab = page.find(kind="tab")
    if tab is not None and "active" not in tab.flags:
        return [f"click {tab.number}"]
    return page.click(kind="button", text="Submit")


def _results(goal: str, page: Page) -> list[str]:
    """Search, and turn the pages of results to the one that is wanted."""
    field = page.find(id="search-text")
    word, place = quoted(goal)[0], int(re.findall(r"the (\d+)\w\w search result", goal)[0]) - 1
    if field is None or field.value != word:
        return [f"type {field.number} {word}"] if field else []
    pages = page.all(kind="link", text=re.compile(r"^\d$"))
    results = [e for e in page.all(kind="link") if e.text not in ("<", ">") and e not in pages]
    if not results:
        return page.click(kind="button", text="Search")
    wanted = place // 3
    chosen = next((k for k, e in enumerate(pages) if "active" in e.flags or "focused" in e.flags), 0)
    if chosen != wanted:
        return [f"click {pages[wanted].number}"] if wanted < len(pages) else page.click(kind="link", text=">")
    return [f"click {results[place % 3].number}"]


EXPERTS: dict[str, Callable[[str, Page], list[str]]] = {
    **dict.fromkeys(("click-tab-2", "click-tab-2-easy", "click-tab-2-medium", "click-tab-2-hard"), _tabs),
    **dict.fromkeys(("click-collapsible-2", "click-collapsible-2-nodelay"), _sections),
    **dict.fromkeys(("click-collapsible", "click-collapsible-nodelay"), _section),
    "search-engine": _results,
}
