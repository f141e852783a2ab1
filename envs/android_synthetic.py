"""A small data set in the published format of AndroidControl: drawn screens, and errands done on them.

Every episode is a goal of one errand or several in made-up apps (toggles in settings, forms, lists with search and
removal, a gallery), and the shortest way to it. Lengths run from 1 to 12 actions, equally often in each split.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agentgym.envs import android_control_wire as wire
from agentgym.envs.android_control_data import LISTED_FILE, SPLIT_FILE, SUBSET_FILE, cache_folder, made_once
from agentgym.envs.android_errands import Task, draw_task
from agentgym.envs.android_screens import grip, layout, picture, tree

from agentgym.errors import ConfigError
from agentgym.gui_actions import NO_POINT

LENGTHS = range(1, 13)
"""Actions of an episode."""

_VERSION = 1
_SHARDS = 2


@dataclass(frozen=True)
class Synthetic:
    """What is made.

    Attributes:
        episodes: A multiple of 12; a tenth of the dozens, one at least, is held out for each of dev and test.
        width: Of the screens, in pixels.
        height: Of the screens, in pixels.
        seed: The same settings give the same data.
    """

    episodes: int = 120
    width: int = 270
    height: int = 480
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = asdict(self)
        if wrong := [name for name, value in numbers.items() if type(value) is not int or value < 0]:
            raise ConfigError(f"data.{wrong[0]} is {numbers[wrong[0]]!r}: it must be a whole number of 0 or more")
        if self.episodes % len(LENGTHS) or self.episodes < 3 * len(LENGTHS):
            raise ConfigError(f"data.episodes is {self.episodes}: it must be a multiple of {len(LENGTHS)}, 36 at least")
        for name, least in (("width", 108), ("height", 192)):
            if not least <= numbers[name] <= 4096:
                raise ConfigError(f"data.{name} is {numbers[name]}: it must be {least} to 4096")


def synthetic(settings: Synthetic) -> Path:
    """The folder of a data set, which is made below ``$AGENTGYM_CACHE`` if it is not there.

    Raises:
        MissingDependency: Pillow is not installed.
        ConfigError: It cannot be written.
    """
    digest = hashlib.sha256(repr((_VERSION, settings)).encode()).hexdigest()[:16]
    return made_once(cache_folder() / f"synthetic-{digest}", lambda folder: write(folder, settings))


def write(folder: Path, settings: Synthetic) -> None:
    """Write a data set into a folder that is there: shards, splits, parts of the test, and a list of test steps."""
    written: list[list[bytes]] = [[] for _ in range(_SHARDS)]
    dozens = settings.episodes // len(LENGTHS)
    held_out = max(1, dozens // 10)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    listed: list[dict[str, Any]] = []
    for number in range(settings.episodes):
        rng = np.random.default_rng((settings.seed, number))
        task = draw_task(rng, LENGTHS[number % len(LENGTHS)])
        dozen = dozens - 1 - number // len(LENGTHS)
        split = "test" if dozen < held_out else "validation" if dozen < 2 * held_out else "train"
        splits[split].append(number)
        example, rows = _example(number, task, (settings.width, settings.height), rng)
        written[number % _SHARDS].append(example)
        listed += rows if split == "test" else []
    for number, records in enumerate(written):
        wire.write_records(folder / f"android_control-{number:05}-of-{_SHARDS:05}", records)
    parts = {"IDD": splits["test"], "app_unseen": [], "task_unseen": [], "category_unseen": []}
    fewer = [row for number, row in enumerate(listed) if number % 11]
    for name, value in ((SPLIT_FILE, splits), (SUBSET_FILE, parts), (LISTED_FILE, fewer)):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def _example(
    number: int, task: Task, size: tuple[int, int], rng: np.random.Generator
) -> tuple[bytes, list[dict[str, Any]]]:
    """An episode as a ``tf.train.Example``, and its steps in the form of GUI-R1's data."""
    screens = [*(step.screen for step in task.steps), task.last]
    goal = ", then ".join(task.goal)
    goal = f"{goal[0].upper()}{goal[1:]}."
    actions: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    history: list[str] = []
    for k, step in enumerate(task.steps):
        action: dict[str, Any] = {"action_type": step.kind}
        if step.target:
            left, top, right, bottom = next(grip(w, b) for w, b in layout(step.screen, *size) if w.label == step.target)
            action |= {"x": int(rng.integers(left + 1, right)), "y": int(rng.integers(top + 1, bottom))}
        if step.text:
            action[{"scroll": "direction", "open_app": "app_name"}.get(step.kind, "text")] = step.text
        actions.append(action)
        kind = {"input_text": "type", "navigate_back": "press_back"}.get(step.kind, step.kind)
        rows.append(
            {
                "image": f"android_control/{number}_{k}.png",
                "instruction": goal,
                "history": " ".join(history),
                "gt_action": kind,
                "gt_bbox": [action["x"], action["y"]] if step.target else list(NO_POINT),
                "gt_input_text": step.text or "no input text",
                "group": "android_control",
                "ui_type": "mobile",
            }
        )
        history.append(f"Step {k + 1}: {step.why}.")
    features: dict[str, Any] = {
        "episode_id": [number],
        "goal": [goal.encode()],
        "screenshots": [picture(screen, *size) for screen in screens],
        "accessibility_trees": [tree(screen, *size) for screen in screens],
        "screenshot_widths": [size[0]] * len(screens),
        "screenshot_heights": [size[1]] * len(screens),
        "actions": [json.dumps(action).encode() for action in actions],
        "step_instructions": [step.why.encode() for step in task.steps],
    }
    return wire.write_example(features), rows
