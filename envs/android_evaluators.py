"""Three ways in use to score a step of AndroidControl, which differ by ten points and more for the same answers.

`qwen` (default): a point is right in the box of a leaf around the recorded point, or within 0.04 max(W, H) of it; a
text if one is within the other; an app by its name, or by a click on it; a scroll by its direction. Back and home are
one type whose argument is the button; of ``wait`` the type counts.

`os_atlas`: a point is right if (dx/W)² + (dy/H)² < 0.14²; texts, names of apps and directions if the F1 of their words
is 0.5 or more, or of single words one is within the other; of buttons and ``wait`` the type counts. Its own step score
is the share of right arguments, whatever the type, among the steps that have one.

`agentcpm`: a point is right in one of the 5 boxes that are nearest to the recorded point, or if
(dx/W)² + (dy/H)² ≤ 0.04²; texts, directions and buttons as `qwen`. Steps that open an app are left out, ``long_press``
counts as ``click``, and the last screen of an episode is one step more, at which ``wait`` is right.

Boxes are enlarged by 1.2 about their centre.

Sources: the evaluation code of OS-Atlas (arXiv:2410.23218) and GUI-R1 (2504.10458); of Qwen2.5-VL and InfiGUI-R1
(2504.14239); of AgentCPM-GUI (2506.01391).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentgym.envs.android_control_tree import Box

from agentgym.errors import unknown
from agentgym.gui_actions import POINTED, GuiAction

EVALUATORS = ("qwen", "os_atlas", "agentcpm")
"""Names of the evaluators."""

ENLARGED = 1.2
_ATLAS_REACH, _REACH, _NEAREST = 0.14, 0.04, 5
_ENOUGH = 0.5
_GUI_R1_PIXELS = 140
_BUTTONS = {"press_back": "press", "navigate_home": "press"}


@dataclass(frozen=True)
class Gold:
    """A recorded step, as far as it is scored.

    Attributes:
        action: What was done.
        width: Of the screen, in pixels.
        height: Of the screen, in pixels.
        leaves: The boxes of the leaves on the screen.
        app: The box of the app that is opened, or None.
    """

    action: GuiAction
    width: int
    height: int
    leaves: tuple[Box, ...] = ()
    app: Box | None = None


@dataclass(frozen=True)
class StepScore:
    """How an action compares with the recorded one.

    Attributes:
        kind: Kind of the recorded action.
        type_correct: Whether the type is right.
        argument_score: How right the argument is: 0 or 1, except for `os_atlas`' F1; 1 if there is none. Of an action
            of the wrong type too.
        grounding: Whether the point is right, if the recorded action has one; of the right type or not.
        success: Right type, and right argument.
    """

    kind: str
    type_correct: bool
    argument_score: float
    grounding: bool | None
    success: bool


def score_step(evaluator: str, gold: Gold, action: GuiAction | None) -> StepScore:
    """Score an action.

    Args:
        evaluator: One of `EVALUATORS`.
        gold: The recorded step.
        action: What was answered, in the same pixels; None if it could not be read.

    Raises:
        ConfigError: There is no such evaluator.
    """
    if evaluator not in EVALUATORS:
        raise unknown("evaluator", str(evaluator), EVALUATORS)
    right = gold.action
    grounding = None if right.point is None else _near(evaluator, gold, action)
    if action is None:
        return StepScore(right.kind, False, 0.0, grounding, False)
    if evaluator == "qwen" and right.kind == "open_app" and _on_app(gold, action):
        return StepScore(right.kind, True, 1.0, None, True)
    same = _type(evaluator, action) == _type(evaluator, right)
    if not _has_argument(evaluator, right.kind):
        score = 1.0
    elif right.kind in POINTED:
        score = float(bool(grounding))
    elif right.kind in _BUTTONS:
        score = float(action.kind == right.kind)
    elif evaluator == "os_atlas":
        score = word_f1(action.text or "", right.text or "")
    elif right.kind == "scroll":
        score = float(action.text == right.text)
    else:
        score = float(within(action.text or "", right.text or ""))
    return StepScore(right.kind, same, score, grounding, same and score >= _ENOUGH)


def _type(evaluator: str, action: GuiAction) -> str:
    if evaluator == "os_atlas":
        return action.kind
    if evaluator == "agentcpm" and action.kind == "long_press":
        return "click"
    return _BUTTONS.get(action.kind, action.kind)


def _has_argument(evaluator: str, kind: str) -> bool:
    return kind != "wait" and (evaluator != "os_atlas" or kind not in _BUTTONS)


def _near(evaluator: str, gold: Gold, action: GuiAction | None) -> bool:
    """Whether an action is where the recorded one was."""
    if action is None or action.point is None or gold.action.point is None:
        return False
    (x, y), at = gold.action.point, action.point
    dx, dy = at[0] - x, at[1] - y
    apart = math.hypot(dx / gold.width, dy / gold.height)
    if evaluator == "os_atlas":
        return apart < _ATLAS_REACH
    if evaluator == "qwen":
        boxes = [box for box in gold.leaves if _inside((x, y), box)]
        close = math.hypot(dx, dy) <= _REACH * max(gold.width, gold.height)
    else:
        boxes = sorted(gold.leaves, key=lambda box: math.dist((x / gold.width, y / gold.height), _middle(box, gold)))
        boxes, close = boxes[:_NEAREST], apart <= _REACH
    return close or any(_inside(at, enlarged(box)) for box in boxes)


def _on_app(gold: Gold, action: GuiAction) -> bool:
    clicked = action.kind == "click" and action.point is not None
    return clicked and gold.app is not None and _inside(action.point or (0, 0), enlarged(gold.app))


def _middle(box: Sequence[float], gold: Gold) -> tuple[float, float]:
    return (box[0] + box[2]) / 2 / gold.width, (box[1] + box[3]) / 2 / gold.height


def _inside(point: tuple[int, int], box: Sequence[float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def gui_r1_accuracy(gold: Gold, action: GuiAction | None) -> bool:
    """The accuracy in GUI-R1's reward: right type, a click within 140 pixels, what is typed and scrolled by `word_f1`.

    Of all other types nothing is compared, not even the name of an app.
    """
    if action is None or action.kind != gold.action.kind:
        return False
    if action.kind == "click":
        return math.dist(action.point or (0, 0), gold.action.point or (0, 0)) < _GUI_R1_PIXELS
    return action.kind not in ("type", "scroll") or word_f1(action.text or "", gold.action.text or "") >= 0.5


def enlarged(box: Sequence[float], factor: float = ENLARGED) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) that is wider and taller by a factor, about its centre."""
    dx, dy = (box[2] - box[0]) * (factor - 1) / 2, (box[3] - box[1]) * (factor - 1) / 2
    return box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy


def word_f1(text: str, gold: str) -> float:
    """F1 of the different words of two texts, in lower case; of single words 1 if one is within the other."""
    words, wanted = set(text.lower().split()), set(gold.lower().split())
    if len(words) == len(wanted) == 1 and within(*words, *wanted):
        return 1.0
    common = len(words & wanted)
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def within(text: str, gold: str) -> bool:
    """Whether one of two texts is within the other, in lower case, without the space around them."""
    text, gold = text.lower().strip(), gold.lower().strip()
    return bool(text) and (text in gold or gold in text)


def direction(start: tuple[float, float], end: tuple[float, float]) -> str | None:
    """The direction of the data for a swipe of the finger: that of the content, so ``down`` for a finger that goes up.

    That of the longer axis, which is also the one with the largest cosine; None for no way at all.
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    if not (dx or dy):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx > 0 else "right"
    return "up" if dy > 0 else "down"


def swipe(towards: str, start: tuple[float, float], width: int, height: int) -> tuple[float, float]:
    """Where a finger that starts at a point ends, to scroll: by 0.3 of the screen, against the direction."""
    x, y = {"up": (0, 1), "down": (0, -1), "left": (1, 0), "right": (-1, 0)}[towards]
    return start[0] + 0.3 * x * width, start[1] + 0.3 * y * height


def summarize(evaluator: str, test_set: str, steps: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a test; each has the name of evaluator and test set in its own, since none means much without.

    ``type``: right types; ``grounding``: right points among the steps with one; ``step_success``: right type and
    argument; ``episode_success``: episodes with every step right; ``kind/KIND``: step success by kind; and for
    `os_atlas` its own ``step_score``.

    Args:
        evaluator: One of `EVALUATORS`.
        test_set: Its name.
        steps: The last ``info`` of each step.

    Returns:
        ``EVALUATOR/TEST_SET/FIGURE`` to a share of 0 to 1, ``steps`` and ``episodes`` to a number. A share of nothing
        is left out.
    """
    rows = [step for step in steps if evaluator != "agentcpm" or step["action_type"] != "open_app"]
    shares: dict[str, list[bool]] = defaultdict(list)
    episodes: dict[int, bool] = {}
    for step in rows:
        kind, success = step["action_type"], bool(step["success"])
        episodes[step["episode"]] = episodes.get(step["episode"], True) and success
        shares["type"].append(bool(step["type_correct"]))
        shares["step_success"].append(success)
        shares[f"kind/{kind}"].append(success)
        if "grounding" in step:
            shares["grounding"].append(bool(step["grounding"]))
        if evaluator == "os_atlas" and _has_argument(evaluator, kind):
            shares["step_score"].append(step["argument_score"] >= _ENOUGH)
    shares["episode_success"] = list(episodes.values())
    figures = {name: sum(found) / len(found) for name, found in sorted(shares.items()) if found}
    figures |= {"steps": len(rows), "episodes": len(episodes)}
    return {f"{evaluator}/{test_set}/{name}": value for name, value in figures.items()}
