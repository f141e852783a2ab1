"""The three evaluators of AndroidControl on worked examples, and the figures of a whole test."""

from __future__ import annotations

import dataclasses

import pytest
from agentgym.envs.android_control_tree import Box
from agentgym.envs.android_evaluators import (
    EVALUATORS,
    Gold,
    direction,
    enlarged,
    gui_r1_accuracy,
    score_step,
    summarize,
    swipe,
    word_f1,
)

from agentgym.errors import ConfigError
from agentgym.gui_actions import GuiAction

AT = (540, 1200)
WIDTH, HEIGHT = 1080, 2400


def click(dx=0, dy=0, kind="click"):
    return GuiAction(kind, (AT[0] + dx, AT[1] + dy))


def gold(action=None, leaves=(), app=None):
    return Gold(action or click(), WIDTH, HEIGHT, tuple(Box(*box) for box in leaves), app and Box(*app))


def success(evaluator, right, action):
    return score_step(evaluator, right, action).success


@pytest.mark.parametrize(
    ("dx", "dy", "os_atlas", "qwen", "agentcpm"),
    [
        (0, 0, True, True, True),
        (150, 0, True, False, False),  # 0.01929 < 0.0196
        (151, 0, True, False, False),
        (152, 0, False, False, False),  # 0.01981
        (0, 335, True, False, False),
        (0, 336, False, False, False),
        (100, 250, True, False, False),  # 0.01942; 269 > 96
        (96, 0, True, True, False),  # 0.0889 > 0.04
        (97, 0, True, False, False),
        (0, 96, True, True, True),  # 0.04
        (0, 97, True, False, False),
        (43, 0, True, True, True),  # 0.0398
        (44, 0, True, True, False),  # 0.0407
    ],
)
def test_distances_at_1080_by_2400(dx, dy, os_atlas, qwen, agentcpm):
    for evaluator, hit in (("os_atlas", os_atlas), ("qwen", qwen), ("agentcpm", agentcpm)):
        for sign in (1, -1):
            found = score_step(evaluator, gold(), click(sign * dx, sign * dy))
            assert (found.grounding, found.success, found.argument_score) == (hit, hit, float(hit)), evaluator


def test_boxes_are_enlarged_about_their_centre():
    assert enlarged((100, 200, 300, 400)) == pytest.approx((80, 180, 320, 420))


def test_boxes_of_qwen_hold_the_recorded_point():
    around, beside = (340, 1100, 740, 1300), (740, 1100, 1000, 1300)
    right = gold(leaves=[around, beside])
    assert success("qwen", right, click(dx=239))  # x = 779 < 740 + 40
    assert not success("qwen", right, click(dx=241))
    assert not success("qwen", right, click(dx=400))
    assert not success("qwen", gold(leaves=[beside]), click(dx=239))


def test_agentcpm_takes_the_five_nearest_boxes():
    boxes = [(500, 1200 + 200 * k, 580, 1280 + 200 * k) for k in range(6)]
    right = gold(leaves=boxes[::-1])
    assert success("agentcpm", right, click(dy=840))  # in the fifth
    assert not success("agentcpm", right, click(dy=1040))  # in the sixth
    assert success("agentcpm", gold(leaves=boxes[1:]), click(dy=1040))


def test_f1_of_words():
    assert word_f1("shanghai mall", "shanghai shopping mall") == pytest.approx(0.8)
    assert word_f1("buy milk", "order eggs now") == 0
    assert word_f1("Milk milk", "MILK") == 1
    assert word_f1("Settings", "setting") == 1
    assert word_f1("", "setting") == 0


@pytest.mark.parametrize(
    ("text", "wanted", "os_atlas", "qwen"),
    [
        ("shanghai mall", "shanghai shopping mall", True, False),
        ("buy milk", "order eggs now", False, False),
        ("New York", "new york city", True, True),
        ("a b c d e", "a", False, True),
        (" Amber ", "amber", True, True),
        ("amb", "amber", True, True),
        ("amber jar", "jar amber", True, False),
    ],
)
@pytest.mark.parametrize("kind", ["type", "open_app"])
def test_texts(kind, text, wanted, os_atlas, qwen):
    right, action = gold(GuiAction(kind, text=wanted)), GuiAction(kind, text=text)
    assert success("os_atlas", right, action) == os_atlas
    assert success("qwen", right, action) == success("agentcpm", right, action) == qwen
    assert score_step("os_atlas", right, action).argument_score == pytest.approx(word_f1(text, wanted))
    assert score_step("qwen", right, action).grounding is None


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_scrolls_and_buttons(evaluator):
    down = gold(GuiAction("scroll", text="down"))
    assert success(evaluator, down, GuiAction("scroll", text="down"))
    other = score_step(evaluator, down, GuiAction("scroll", text="up"))
    assert (other.type_correct, other.argument_score, other.success) == (True, 0.0, False)
    back = gold(GuiAction("press_back"))
    assert success(evaluator, back, GuiAction("press_back"))
    home = score_step(evaluator, back, GuiAction("navigate_home"))
    assert not home.success
    assert home.type_correct == (evaluator != "os_atlas")  # one type with two buttons, or two types
    wait = score_step(evaluator, gold(GuiAction("wait")), GuiAction("wait"))
    assert (wait.success, wait.argument_score, wait.grounding) == (True, 1.0, None)
    assert not success(evaluator, gold(GuiAction("wait")), click())


def test_long_press_is_a_click_for_agentcpm_alone():
    for evaluator in EVALUATORS:
        found = score_step(evaluator, gold(click(kind="long_press")), click())
        assert found.success == found.type_correct == (evaluator == "agentcpm")
        assert found.grounding is True


def test_apps():
    right = gold(GuiAction("open_app", text="Maps"), app=(100, 100, 200, 300))
    on_icon, beside = GuiAction("click", (210, 90)), GuiAction("click", (300, 90))
    assert [success(e, right, on_icon) for e in EVALUATORS] == [True, False, False]
    assert score_step("qwen", right, on_icon).type_correct
    assert not success("qwen", right, beside)
    assert not success("qwen", gold(GuiAction("open_app", text="Maps")), on_icon)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_what_could_not_be_read_is_wrong(evaluator):
    for action in (click(), GuiAction("wait"), GuiAction("type", text="a")):
        found = score_step(evaluator, gold(action), None)
        assert (found.type_correct, found.argument_score, found.success) == (False, 0.0, False)
        assert not found.grounding


def test_directions_are_those_of_the_content():
    assert direction((540, 1600), (540, 800)) == "down"  # the finger goes up
    assert swipe("down", (540, 1600), WIDTH, HEIGHT) == (540, 1600 - 0.3 * HEIGHT)
    assert swipe("right", (540, 1600), WIDTH, HEIGHT) == (540 - 0.3 * WIDTH, 1600)
    for towards in ("up", "down", "left", "right"):
        assert direction((540, 1600), swipe(towards, (540, 1600), WIDTH, HEIGHT)) == towards
    assert direction((0, 0), (-90, 80)) == "right"
    assert direction((0, 0), (-80, 90)) == "up"
    assert direction((5, 5), (5, 5)) is None


def test_the_accuracy_of_gui_r1():
    right = Gold(GuiAction("click", (100, 100)), 1000, 1000)
    assert gui_r1_accuracy(right, GuiAction("click", (200, 197)))  # 19,409 < 19,600
    assert not gui_r1_accuracy(right, GuiAction("click", (200, 198)))  # 19,604
    assert not gui_r1_accuracy(right, GuiAction("long_press", (100, 100)))
    assert gui_r1_accuracy(gold(GuiAction("open_app", text="Maps")), GuiAction("open_app", text="Mail"))
    assert not gui_r1_accuracy(gold(GuiAction("type", text="buy milk")), GuiAction("type", text="order eggs"))
    assert not gui_r1_accuracy(right, None)


def info_of(episode, score):
    """What the environment says of a step."""
    info = dataclasses.asdict(score) | {"episode": episode, "action_type": score.kind}
    return {name: value for name, value in info.items() if value is not None}


def test_figures_carry_the_names_of_evaluator_and_test_set():
    steps = [
        (1, gold(), click()),
        (1, gold(), click(dx=150)),
        (1, gold(GuiAction("type", text="amber jar")), GuiAction("open_app", text="amber jar")),
        (2, gold(GuiAction("wait")), GuiAction("wait")),
        (2, gold(GuiAction("open_app", text="Maps")), GuiAction("open_app", text="Maps")),
    ]
    figures = {}
    for evaluator in EVALUATORS:
        rows = [info_of(number, score_step(evaluator, right, action)) for number, right, action in steps]
        figures |= summarize(evaluator, "test-full-5", rows)
    assert figures == {
        "qwen/test-full-5/type": 4 / 5,
        "qwen/test-full-5/grounding": 1 / 2,
        "qwen/test-full-5/step_success": 3 / 5,
        "qwen/test-full-5/episode_success": 1 / 2,
        "qwen/test-full-5/kind/click": 1 / 2,
        "qwen/test-full-5/kind/open_app": 1.0,
        "qwen/test-full-5/kind/type": 0.0,
        "qwen/test-full-5/kind/wait": 1.0,
        "qwen/test-full-5/steps": 5,
        "qwen/test-full-5/episodes": 2,
        "os_atlas/test-full-5/type": 4 / 5,
        "os_atlas/test-full-5/grounding": 1.0,
        "os_atlas/test-full-5/step_success": 4 / 5,
        "os_atlas/test-full-5/step_score": 1.0,  # 4 hits of 4 steps with an argument, one of them of the wrong type
        "os_atlas/test-full-5/episode_success": 1 / 2,
        "os_atlas/test-full-5/kind/click": 1.0,
        "os_atlas/test-full-5/kind/open_app": 1.0,
        "os_atlas/test-full-5/kind/type": 0.0,
        "os_atlas/test-full-5/kind/wait": 1.0,
        "os_atlas/test-full-5/steps": 5,
        "os_atlas/test-full-5/episodes": 2,
        "agentcpm/test-full-5/type": 3 / 4,
        "agentcpm/test-full-5/grounding": 1 / 2,
        "agentcpm/test-full-5/step_success": 2 / 4,
        "agentcpm/test-full-5/episode_success": 1 / 2,
        "agentcpm/test-full-5/kind/click": 1 / 2,
        "agentcpm/test-full-5/kind/type": 0.0,
        "agentcpm/test-full-5/kind/wait": 1.0,
        "agentcpm/test-full-5/steps": 4,
        "agentcpm/test-full-5/episodes": 2,
    }
    assert summarize("qwen", "none", []) == {"qwen/none/steps": 0, "qwen/none/episodes": 0}


def test_an_unknown_evaluator():
    with pytest.raises(ConfigError, match="unknown evaluator 'qwn': did you mean qwen"):
        score_step("qwn", gold(), click())
