"""AndroidControl (Li et al., 2024, arXiv:2406.03679) as an environment: one recorded step is one episode."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs.android_control_data import Episode, Recordings, listed, open_split, subset
from agentgym.envs.android_control_tree import Element, moved, told
from agentgym.envs.android_evaluators import EVALUATORS, Gold, StepScore, gui_r1_accuracy, score_step
from agentgym.envs.android_synthetic import Synthetic, synthetic
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, missing, unknown
from agentgym.gui_actions import (
    GuiAction,
    GuiActionError,
    read_action,
    read_reply,
    rescaled,
    resized,
    write_action,
)
from agentgym.spaces import UnicodeText

INSTRUCTIONS = ("high", "low", "low_alone")
"""What is told: goal and history; the instruction of the step too; that instruction alone."""

HISTORIES = ("instructions", "actions")
"""What of the steps before is told: their recorded instructions (as GUI-R1), or recorded actions (as InfiGUI-R1)."""

OBSERVATIONS = ("text", "image", "both")
"""The list of elements in words; the screenshot; both. What is to be done is told with each."""

TEST_SETS = ("full", "listed")
"""Every step of ``test``: 8,444; or those that a file lists, in GUI-R1's data 7,708."""

_DATA = "AGENTGYM_ANDROID_CONTROL"
_OPTIONS = ("split", "steps", "episode", "step", "expert")
_DONE = GuiAction("wait")
_INSTRUCTIONS = (
    "You use a phone. You see its screen and what is to be done, and choose the next action. Points are in pixels of "
    "the screen from its top left corner. Scroll down to see what is further down."
)


class AndroidControlEnv(gym.Env[Any, str]):
    """A recorded step: a screen, what is to be done, and one action, which is compared with the recorded one.

    An action is a list with one action on a screen, or a whole reply (`agentgym.gui_actions`); its point is in
    pixels of the screen as it is observed. The reward is 1 if the chosen evaluator takes the step for right
    (`agentgym.envs.android_evaluators`), else 0, also for what cannot be read. ``terminated`` after the action. What
    happened before is as recorded, whatever was answered in earlier episodes.

    Observations are text, or with ``image`` and ``both`` a dictionary of ``text`` and ``image`` (uint8 ``[H, W, 3]``).
    Screens of other data than the synthetic ones differ in size; ``observation_space`` is that of the episode.

    ``info`` holds ``episode`` (its id), ``step`` (from 0), ``episode_steps`` (recorded actions of the episode),
    ``width`` and ``height`` (as observed), ``score``, ``max_score``, ``success``; after the action ``type_correct`` (0
    or 1), ``argument_score`` (0 to 1, of a wrong type too), ``grounding`` (0 or 1; where the recorded action has a
    point), ``gui_r1_accuracy`` (0 or 1), ``format_ok`` and ``action_type`` (kind of the recorded action); and with
    ``expert`` the ``expert_action``.

    Attributes:
        pool: Episode id and number of every step that a reset may draw.
        test_set: Name of what is drawn, for `agentgym.envs.android_evaluators.summarize`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        split: str = "train",
        test_set: str = "full",
        part: str | None = None,
        steps: Sequence[int | None] | None = None,
        instruction: str = "high",
        history: str = "instructions",
        observation: str = "text",
        evaluator: str = "qwen",
        max_pixels: int | None = None,
        patch: int = 28,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments, and open the recordings; the first use of a split unpacks it, which may take minutes.

        Args:
            data: A folder with the published files; ``synthetic``, or the fields of
                `agentgym.envs.android_synthetic.Synthetic`, for a made-up data set; None: what the environment
                variable ``AGENTGYM_ANDROID_CONTROL`` says, else ``synthetic``.
            split: ``train``, ``dev`` or ``test``.
            test_set: One of `TEST_SETS`, for the split ``test``.
            part: A part of ``test``, such as ``app_unseen``, or None.
            steps: Only episodes of so many actions: the fewest, and the most or None; None: all.
            instruction: One of `INSTRUCTIONS`.
            history: One of `HISTORIES`.
            observation: One of `OBSERVATIONS`.
            evaluator: One of `agentgym.envs.android_evaluators.EVALUATORS`.
            max_pixels: Show the screen in the size of `agentgym.gui_actions.resized` with this cap; points are
                in pixels of that size. None: as recorded.
            patch: What the sides are then multiples of: 28 for Qwen2.5-VL, 32 for Qwen3-VL.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None, ``ansi`` or ``rgb_array``.

        Raises:
            ConfigError: A wrong argument, or no such data.
            RecordError: A file of the data is truncated or corrupt.
            MissingDependency: Pillow is not installed.
        """
        for name, chosen, choices in (
            ("test_set", test_set, TEST_SETS),
            ("instruction", instruction, INSTRUCTIONS),
            ("history", history, HISTORIES),
            ("observation", observation, OBSERVATIONS),
            ("evaluator", evaluator, EVALUATORS),
            ("render_mode", render_mode or "ansi", self.metadata["render_modes"]),
        ):
            if chosen not in choices:
                raise unknown(name, str(chosen), choices)
        if patch < 1:
            raise ConfigError(f"patch is {patch}: it must be at least 1")
        if max_pixels is not None and max_pixels < patch**2:
            raise ConfigError(f"max_pixels is {max_pixels}: it must be {patch}² at least, or None")
        if split != "test" and (test_set != "full" or part is not None):
            raise ConfigError(f"test_set and part are for split=test, and split is {split!r}")
        self.split, self.steps, self.expert, self.render_mode = split, steps, expert, render_mode
        self.instruction, self.history, self.observation, self.evaluator = instruction, history, observation, evaluator
        self._shown_as = None if max_pixels is None else (max_pixels, patch)
        self._listed_only, self._part = test_set == "listed", part
        self.instructions, self.max_steps, self.max_score = _INSTRUCTIONS, 1, 1.0
        self._data = _folder(data)
        self._recordings: Recordings | None = None
        self._episodes: dict[int, Episode] = {}
        self._chosen: tuple[str, int, float] | None = None
        self.pool: list[tuple[int, int]] = []
        self.test_set = ""
        self._open(split, steps)
        self.action_space = UnicodeText()
        first = self._episodes[self.pool[0][0]]
        self._set_space(self._size(first, 0))
        self._playing = False
        self._score: StepScore | None = None
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a step.

        Args:
            seed: Chooses the step: number ``seed % n`` of the ``n`` in `pool`. Drawn from ``np_random`` if None.
            options: ``split``, ``steps``, ``expert`` for this episode instead of the constructor's; ``episode`` and
                ``step`` to draw among the steps of one recorded episode, or to name one.

        Raises:
            ConfigError: A wrong option, or there is no such step.
        """
        super().reset(seed=seed)
        self._playing = False
        options = dict(options or {})
        if wrong := set(options) - set(_OPTIONS):
            raise unknown("reset option", sorted(wrong)[0], _OPTIONS)
        split, steps = options.get("split", self.split), options.get("steps", self.steps)
        self._open(split, steps)
        pool = self.pool
        for place, name in enumerate(("episode", "step")):
            if (wanted := options.get(name)) is not None:
                pool = [row for row in pool if row[place] == wanted]
        if not pool:
            wanted = {name: options[name] for name in ("episode", "step") if options.get(name) is not None}
            raise ConfigError(f"there is no step {wanted} in {self.test_set}")
        chosen = int(self.np_random.integers(len(pool))) if seed is None else int(seed) % len(pool)
        number, self._step = pool[chosen]
        self._episode = self._episodes[number]
        assert self._recordings is not None
        screen = self._recordings.elements(self._episode, self._step)
        pictured = self.observation != "text" or self.render_mode == "rgb_array"
        self._picture = self._recordings.picture(self._episode, self._step) if pictured else b""
        self._gold = self._recorded(screen)
        self._set_space(self._size(self._episode, self._step))
        self._hints, self._score, self._format_ok = bool(options.get("expert", self.expert)), None, True
        self._playing = True
        self._text = self._told(screen)
        return self._observed(), self._info()

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Compare an action with the recorded one.

        Raises:
            ResetNeeded: Before ``reset`` or after the action.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._playing = False
        answered: GuiAction | None = None
        self._text = "The action was taken."
        try:
            answered = _with_point(_read(action), self._shown, self._episode.sizes[self._step])
        except GuiActionError as error:
            self._format_ok, self._text = False, f"[error: {error}]"
        self._score = score_step(self.evaluator, self._gold, answered)
        self._gui_r1 = gui_r1_accuracy(self._gold, answered)
        return self._observed(), float(self._score.success), True, False, self._info()

    def render(self) -> Any:
        """The last text with ``ansi``, or the screen, uint8 ``[H, W, 3]``, with ``rgb_array``."""
        if self.render_mode == "rgb_array":
            return self._image()
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the recordings. Safe to call again."""
        recordings, self._recordings, self._playing = self._recordings, None, False
        if recordings is not None:
            recordings.close()

    def _open(self, split: str, steps: Sequence[int | None] | None) -> None:
        """Open a split, and find the steps that may be drawn."""
        low, high = _lengths(steps)
        chosen = (split, low, high)
        if self._recordings is not None and self._chosen == chosen:
            return
        if self._recordings is None or self._chosen is None or self._chosen[0] != split:
            recordings = open_split(self._data, split)
            self.close()
            self._recordings = recordings
            self._episodes = {episode.id: episode for episode in recordings.episodes}
        self._chosen = chosen
        rows = [(e.id, k) for e in self._episodes.values() if low <= len(e.actions) <= high for k in self._counted(e)]
        named = [split]
        if split == "test" and self._part is not None:
            episodes = subset(self._data, self._part)
            rows = [row for row in rows if row[0] in episodes]
            named.append(self._part)
        if steps is not None:
            named.append(f"{low}to{high}" if high < math.inf else f"{low}up")
        if split == "test" and self._listed_only:
            wanted = listed(self._data)
            rows = [row for row in rows if row in wanted]
        named.append("listed" if split == "test" and self._listed_only else "full")
        self.pool, self.test_set = rows, "-".join([*named, str(len(rows))])
        if not rows:
            raise ConfigError(f"data: there is no step in {self.test_set} of {self._data}")

    def _counted(self, episode: Episode) -> list[int]:
        """The numbers of an episode's steps that the evaluator counts."""
        steps = list(range(len(episode.actions)))
        if self.evaluator == "agentcpm":
            steps = [k for k in steps if episode.actions[k].kind != "open_app"]
            if not self._listed_only:
                steps.append(len(episode.actions))  # the last screen, at which nothing is left to do
        return steps

    def _recorded(self, screen: list[Element]) -> Gold:
        episode, step = self._episode, self._step
        action = _DONE if step == len(episode.actions) else episode.actions[step]
        name = (action.text or "").lower().strip()
        app = [e.box for e in screen if action.kind == "open_app" and e.label.lower().strip() == name]
        leaves = tuple(element.box for element in screen if element.leaf)
        width, height = episode.sizes[step]
        return Gold(action, width, height, leaves, app[0] if app else None)

    def _size(self, episode: Episode, step: int) -> tuple[int, int]:
        """Width and height of a screen as it is observed."""
        size = episode.sizes[step]
        return size if self._shown_as is None else resized(*size, *self._shown_as)

    def _set_space(self, size: tuple[int, int]) -> None:
        self._shown = size
        text = UnicodeText()
        image = gym.spaces.Box(0, 255, (size[1], size[0], 3), np.uint8)
        self.observation_space = text if self.observation == "text" else gym.spaces.Dict({"text": text, "image": image})

    def _told(self, screen: list[Element]) -> str:
        episode, step = self._episode, self._step
        over = step == len(episode.actions)
        lines = [] if self.instruction == "low_alone" else [f"Goal: {episode.goal}"]
        if self.instruction != "low_alone":
            before = [*episode.instructions[:step]]
            if self.history == "actions":
                before = [write_action(self._as_shown(episode.actions[k], k)) for k in range(step)]
            lines.append(f"Done before: {'; '.join(f'{k}. {what}' for k, what in enumerate(before, 1)) or 'nothing'}")
        if self.instruction != "high":
            lines.append(f"Now: {'Nothing is left to do' if over else episode.instructions[step]}")
        lines.append(f"Screen: {self._shown[0]} x {self._shown[1]} pixels")
        if self.observation != "image":
            x, y = (a / b for a, b in zip(self._shown, episode.sizes[step], strict=True))
            lines.append(told(moved(element, x, y) for element in screen))
        return "\n".join(lines)

    def _as_shown(self, action: GuiAction, step: int) -> GuiAction:
        """A recorded action with its point in pixels of the screen as it is observed."""
        return _with_point(action, self._episode.sizes[step], self._size(self._episode, step))

    def _observed(self) -> Any:
        return self._text if self.observation == "text" else {"text": self._text, "image": self._image()}

    def _image(self) -> np.ndarray:
        """The screen as it is observed, uint8 ``[H, W, 3]``."""
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as error:
            raise missing("Pillow", "gui") from error
        try:
            with Image.open(io.BytesIO(self._picture)) as image:
                picture = image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            where = f"episode {self._episode.id}, step {self._step}"
            raise ConfigError(f"{self._data}: the screenshot of {where} is broken: {error}") from error
        if picture.size != self._shown:
            picture = picture.resize(self._shown, Image.Resampling.BICUBIC)
        return np.asarray(picture, np.uint8)

    def _info(self) -> dict[str, Any]:
        found = self._score
        info: dict[str, Any] = {
            "episode": self._episode.id,
            "step": self._step,
            "episode_steps": len(self._episode.actions),
            "width": self._shown[0],
            "height": self._shown[1],
            "score": float(found is not None and found.success),
            "max_score": self.max_score,
            "success": found is not None and found.success,
        }
        if found is not None:
            info |= {
                "type_correct": int(found.type_correct),
                "argument_score": found.argument_score,
                "format_ok": self._format_ok,
                "action_type": found.kind,
                "gui_r1_accuracy": int(self._gui_r1),
            }
            if found.grounding is not None:
                info["grounding"] = int(found.grounding)
        if self._hints:
            hint = write_action(self._as_shown(self._gold.action, self._step))
            info["expert_action"] = hint if self._playing else None
        return info


def _lengths(steps: Any) -> tuple[int, float]:
    """The fewest and the most actions of an episode."""
    if steps is None:
        return 1, math.inf
    whole = (
        isinstance(steps, Sequence)
        and len(steps) == 2
        and type(steps[0]) is int
        and type(steps[1]) in (int, type(None))
    )
    if not whole or not 1 <= steps[0] <= (math.inf if steps[1] is None else steps[1]):
        raise ConfigError(f"steps is {steps!r}: it must be the fewest actions, 1 at least, and the most or None")
    return steps[0], math.inf if steps[1] is None else steps[1]


def _with_point(action: GuiAction, size: tuple[int, int], to: tuple[int, int]) -> GuiAction:
    """An action on a screen of one size (width, height) as one on a screen of another."""
    return action if action.point is None else dataclasses.replace(action, point=rescaled(action.point, size, to))


def _read(action: str) -> GuiAction:
    """The action of a list, or of a whole reply."""
    return read_action(action) if action.lstrip().startswith("[") else read_reply(action)[1]


def _folder(data: str | os.PathLike[str] | Mapping[str, Any] | None) -> Path:
    data = os.environ.get(_DATA) or "synthetic" if data is None else data
    if data != "synthetic" and not isinstance(data, Mapping):
        return Path(data)
    given = {} if isinstance(data, str) else dict(data)
    try:
        return synthetic(Synthetic(**given))
    except TypeError as error:
        raise ConfigError(f"data: {error}; it has episodes, width, height and seed") from error
