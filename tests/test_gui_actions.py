"""Actions on a screen as text: what is written is read back, every mistake has its own message; sizes and points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.actions import Gui, Parsed
from agentgym.gui_actions import (
    DIRECTIONS,
    KINDS,
    GuiAction,
    GuiActionError,
    read_action,
    read_reply,
    rescaled,
    resized,
    write_action,
    write_reply,
)

POINT = st.tuples(st.integers(0, 5000), st.integers(0, 5000))
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@st.composite
def actions(draw):
    kind = draw(st.sampled_from(KINDS))
    if kind == "scroll":
        return GuiAction(kind, text=draw(st.sampled_from(DIRECTIONS)))
    if kind in ("click", "long_press"):
        return GuiAction(kind, draw(POINT))
    if kind in ("type", "open_app", "answer"):
        text = draw(
            TEXT.filter(lambda text: kind != "open_app" or text.strip().lower() not in ("none", "no input text"))
        )
        return GuiAction(kind, draw(st.none() | POINT) if kind == "type" else None, text)
    return GuiAction(kind)


def reply(action="click", point="[3, 4]", text='"none"', thought="I see."):
    body = f'[{{"action": "{action}", "point": {point}, "input_text": {text}}}]'
    return f"<think>{thought}</think>\n<answer>{body}</answer>"


@given(actions(), st.sampled_from(["", "First, look.", "a < b\n[1]"]))
def test_what_is_written_is_read_back(action, thought):
    assert read_action(write_action(action)) == action
    assert read_reply(write_reply(action, thought)) == (thought, action)
    canonical = write_action(action)
    assert Gui().parse(Gui().write(canonical, ()), ()) == Parsed(canonical)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (reply(), GuiAction("click", (3, 4))),
        (" \n" + reply("long_press", "(0, 9)") + "\n", GuiAction("long_press", (0, 9))),
        (reply("scroll", "[5, 5]", '"DOWN"'), GuiAction("scroll", text="down")),
        (reply("type", "[-100, -100]", '"none"'), GuiAction("type", text="none")),
        (reply("type", "[1, 2]", '"a\\"b"'), GuiAction("type", (1, 2), 'a"b')),
        (reply("answer", "[-100, -100]", '"none"'), GuiAction("answer", text="none")),
        (reply("press_back", "[7, 7]", '"whatever"'), GuiAction("press_back")),
        (reply("navigate_home", "[-100, -100]", '""'), GuiAction("navigate_home")),
        (
            "<think>\n</think><answer>[{'action': 'open_app', 'point': [-100, -100], 'input_text': 'Maps'}]</answer>",
            GuiAction("open_app", text="Maps"),
        ),
        (reply("type", "[-100, -100]", '"half \\ud800"'), GuiAction("type", text="half ?")),
    ],
)
def test_replies_that_can_be_read(text, action):
    assert read_reply(text)[1] == action
    assert Gui().parse(text, ()) == Parsed(write_action(action))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "exactly one <think>"),
        ("<answer>[]</answer>", "exactly one <think>"),
        ("<think>hm", "exactly one </think>"),
        ("<think>hm</think>[...]", "exactly one <answer>"),
        (reply() + reply(), "exactly one <think>, this one has 2"),
        ("I will click. " + reply(), "nothing else around"),
        (reply() + " Done.", "nothing else around"),
        ("<answer>[]</answer><think>late</think>", "nothing else around"),
        ("<think></think><answer> </answer>", "is empty"),
        ("<think></think><answer>click 3 4</answer>", "neither JSON nor"),
        ("<think></think><answer>[{'action': 'click', 'point': [1, 2], 'input_text': open('x')}]</answer>", "neither"),
        ("<think></think><answer>" + "[" * 19_000 + "</answer>", "neither"),
        ("<think></think><answer>" + "-" * 19_000 + "1</answer>", "neither"),
        ("<think></think><answer>" + "1" * 30_000 + "</answer>", "longer than"),
        ("<think></think><answer>{}</answer>", "exactly one action"),
        ("<think></think><answer>[]</answer>", "exactly one action"),
        ("<think></think><answer>[{}, {}]</answer>", "exactly one action"),
        ("<think></think><answer>[1]</answer>", "exactly the fields action, point, input_text"),
        ('<think></think><answer>[{"action": "wait", "point": [-100, -100]}]</answer>', "exactly the fields"),
        (
            '<think></think><answer>[{"action": 1, "point": [1, 2], "input_text": ""}]</answer>',
            '"action" must be a text',
        ),
        (reply("swipe"), "there is no action 'swipe': choose from wait, long_press"),
        (reply(point='"3, 4"'), "two integers"),
        (reply(point="[3]"), "two integers"),
        (reply(point="[3.5, 4]"), "two integers"),
        (reply(point="[true, 4]"), "two integers"),
        (reply(point="[-100, -100]"), 'click needs a "point"'),
        (reply(point="[-3, 4]"), "off the screen"),
        (reply(point="[3, 4000000]"), "off the screen"),
        (reply(text="5"), '"input_text" must be a text'),
        (reply("type", text='"  "'), 'type needs an "input_text"'),
        (reply("open_app", text='"none"'), 'open_app needs an "input_text"'),
        (reply("scroll", text='"north"'), "scroll needs one of up, down, left, right"),
    ],
    ids=lambda text: text[-40:],
)
def test_every_mistake_is_named(text, message):
    with pytest.raises(GuiActionError, match=message.replace("[", "\\[")):
        read_reply(text)
    parsed = Gui().parse(text, ())
    assert parsed.action is None
    assert message in (parsed.error or "")
    assert len(parsed.error or "") < 300


def test_a_text_cannot_fake_a_block():
    action = GuiAction("type", text="</answer><answer>")
    assert read_reply(write_reply(action)) == ("", action)
    with pytest.raises(ValueError, match="holds a tag"):
        write_reply(action, "so </think>")
    with pytest.raises(GuiActionError, match="no action 'fly'"):
        GuiAction("fly")


def test_the_sizes_of_qwen():
    assert resized(1080, 2400) == (728, 1652)
    assert 728 * 1652 == 1_202_656
    assert resized(1080, 2400, 10**8) == (1092, 2408)
    assert resized(1080, 2400, patch=32) == (736, 1664)
    assert resized(5, 5) == (28, 28)


def test_each_axis_has_its_own_factor():
    assert (round(1080 / 728, 4), round(2400 / 1652, 4)) == (1.4835, 1.4528)
    small, large = resized(1080, 2400), (1080, 2400)
    for axis, side in enumerate(large):
        for place in range(side):
            point = rescaled((place, place), large, small)
            assert abs(point[axis] * side / small[axis] - place) <= 0.742
    assert rescaled((539, 1199), large, small) == (363, 825)
    assert rescaled((1079, 2399), large, (27, 60)) == (26, 59)
    assert rescaled((1080, 2500), large, small) == (728, 1721)
