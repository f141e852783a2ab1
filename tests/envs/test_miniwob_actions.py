"""Commands of MiniWoB: what they may look like, what they are not, and how near one is to another."""

from __future__ import annotations

import pytest
from agentgym.envs.miniwob_actions import LONGEST_TEXT, Command, Mistake, likeness, parse


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("click 3", Command("click", 3)),
        ("CLICK [3]", Command("click", 3)),
        ("click(3)", Command("click", 3)),
        ("click(30, 40)", Command("click", (30.0, 40.0))),
        (" click #3 ", Command("click", 3)),
        ("type 2 hello  world", Command("type", 2, "hello  world")),
        ('type 2 "hello "', Command("type", 2, "hello ")),
        ("type hello", Command("type", None, "hello")),
        ('type "5 apples"', Command("type", None, "5 apples")),
        ("type 42", Command("type", None, "42")),
        ("press Enter", Command("press", None, "Enter")),
        ("press CTRL+A", Command("press", None, "ctrl+a")),
        ("press A", Command("press", None, "A")),
        ("press left", Command("press", None, "ArrowLeft")),
        ("scroll down", Command("scroll", None, "down")),
        ("scroll 4 up", Command("scroll", 4, "up")),
        ("drag 1 2", Command("drag", 1, to=2)),
        ("drag 1 to 2", Command("drag", 1, to=2)),
        ("drag 1 30 40", Command("drag", 1, to=(30.0, 40.0))),
        ("drag 1 2 30 40", Command("drag", (1.0, 2.0), to=(30.0, 40.0))),
        ("wait", Command("wait")),
        ("done", Command("done")),
    ],
)
def test_commands_are_read_forgivingly(text, command):
    assert parse(text) == command


NONSENSE = (
    *(
        "",
        "click",
        "click a",
        "click 1.5",
        "click 1 2 3",
        "click 1e999",
        "click " + "9" * 400,
        "kiss 1",
        "type",
        "type ''",
    ),
    *("press", "press ab", "press ctrl+q", "scroll", "scroll left", "drag 1", "drag 1 2 3 4 5", "wait for it", "type"),
    "type " + "a" * (LONGEST_TEXT + 1),
)


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_no_command_says_so(text):
    with pytest.raises(Mistake, match=r"\w"):
        parse(text)


@pytest.mark.parametrize(
    ("given", "wanted", "score"),
    [
        ("click 1", "click 1", 1.0),
        ("click 2", "click 1", 0.0),
        ("click 12 21", "click 1", 1.0),
        ("click 40 21", "click 1", 0.0),
        ("type 1 red fox", "type 1 red fox", 1.0),
        ("type 1 fox", "type 1 red fox", (1 + 2 / 3) / 2),
        ("type 2 red fox", "type 1 red fox", 0.5),
        ("press enter", "press enter", 1.0),
        ("press tab", "press enter", 0.0),
        ("drag 1 2", "drag 1 2", 1.0),
        ("drag 1 1", "drag 1 2", 0.5),
        ("wait", "wait", 1.0),
    ],
)
def test_likeness_of_arguments(given, wanted, score):
    boxes = {1: [10, 20, 10, 10], 2: [50, 20, 10, 10]}
    assert likeness(parse(given), parse(wanted), boxes) == pytest.approx(score)
