"""MiniWoB++ (Shi et al., 2017; Liu et al., 2018) behind Gymnasium: small web tasks in a real browser.

The pages are those of the ``miniwob`` package. All environments of a Python process share one Chromium
(`agentgym.envs.chromium`), each with a page of its own, in which a script does a whole step in one call: the command,
the time that passes, and what is seen then. The clock of the page moves with the steps alone, so that nothing depends
on how long anybody takes, and its own limit of ten seconds is switched off.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs import chromium
from agentgym.envs.miniwob_actions import Command, Mistake, likeness, parse
from agentgym.envs.miniwob_experts import EXPERTS, STEPS, Expert
from agentgym.envs.miniwob_page import Page
from agentgym.envs.miniwob_text import Element, commands, elements, pointed, tell
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, missing, unknown
from agentgym.spaces import UnicodeText

WIDTH, HEIGHT = 160, 210
"""Size of the screen in pixels."""

SPLITS = ("train", "dev", "test")
OBSERVATIONS = ("text", "image", "both")

STEP_MS, WAIT_MS = 500, 2000
"""What passes of the page's own time in a step, and in one that waits."""

LONGEST_PLAN = 100
"""An expert that needs more steps than this is taken to be lost."""

_NOT_DRAWN = frozenset({"choose-list", "click-scroll-list"})
"""Tasks whose lists a browser draws outside the page: they are not on the screenshot, so no expert points at them."""

_DRAWS = 200
"""Episodes looked at for one that takes as many steps as were asked for."""

RELOADED = frozenset(
    {
        *("book-flight", "book-flight-nodelay", "click-pie", "click-pie-nodelay", "scroll-text", "scroll-text-2"),
        *("chase-circle", "draw-circle", "draw-line", "form-sequence-3", "moving-items", "search-engine", "simon-says"),
        *("stock-market", "use-autocomplete", "use-autocomplete-nodelay", "use-colorwheel", "use-colorwheel-2"),
    }
)
"""Pages that do not start an episode afresh by themselves: they are loaded anew for each."""

_INSTRUCTIONS = (
    "You use a web page of 160 by 210 pixels to do what the task says. Each turn you give one command:\n"
    "click N: click on element number N; click X Y: click on a point in pixels from the upper left corner\n"
    "type N TEXT: put TEXT into element N in place of what is there; type TEXT: type at the cursor\n"
    "press KEY: one of enter, tab, escape, backspace, delete, left, right, up, down, home, end, pageup, pagedown, "
    "space, ctrl+a, ctrl+c, ctrl+v, ctrl+x, or a character\n"
    "scroll down, scroll up, scroll N down, scroll N up\n"
    "drag N M: drag element N onto element M; drag X Y X2 Y2: drag from one point to another\n"
    "wait: do nothing for two seconds\n"
    "done: give up; a task that is accomplished ends by itself."
)


_POINTED_INSTRUCTIONS = (
    "You see a web page of 160 by 210 pixels and use it to do what the task says. Each turn you give one command:\n"
    "click X Y: click on a point in pixels from the upper left corner\n"
    "type TEXT: type at the cursor; click into a field first\n"
    "press KEY: one of enter, tab, escape, backspace, delete, left, right, up, down, home, end, pageup, pagedown, "
    "space, ctrl+a, ctrl+c, ctrl+v, ctrl+x, or a character\n"
    "scroll down, scroll up\n"
    "drag X Y X2 Y2: drag from one point to another\n"
    "wait: do nothing for two seconds\n"
    "done: give up; a task that is accomplished ends by itself."
)


@functools.cache
def pages() -> dict[str, Path]:
    """Name of a task to its page.

    Raises:
        MissingDependency: The package is not installed.
    """
    spec = importlib.util.find_spec("miniwob")  # importing it would import Selenium
    if spec is None or not spec.submodule_search_locations:
        raise missing("miniwob", "gui")
    folder = Path(spec.submodule_search_locations[0]) / "html" / "miniwob"
    return {path.stem: path for path in sorted(folder.glob("*.html"))}


@functools.cache
def _script() -> str:
    """What runs before the scripts of every page."""
    parts = (Path(__file__).with_name(f"miniwob_{part}.js") for part in ("clock", "look", "act", "episode"))
    lines = "\n".join(part.read_text(encoding="utf-8") for part in parts)
    return f'(() => {{\n"use strict";\n{lines}}})();'


@functools.cache
def _pictures(page: Path) -> list[str]:
    """The pictures that a page or its styles name, as far as they are there: their paths from the page."""
    texts = [(page, page.read_text(encoding="utf-8"))]
    styles = (page.parent / name for name in re.findall(r'href="([^"]+\.css)"', texts[0][1]))
    texts += [(style, style.read_text(encoding="utf-8")) for style in styles if style.is_file()]
    found = {(file.parent / name).resolve() for file, text in texts for name in _PICTURE.findall(text)}
    for name in set(re.findall(r"common/special/([\w-]+)", texts[0][1])):  # names are also put together by scripts
        found |= {path.resolve() for path in (page.parents[1] / "common" / "special" / name).rglob("*.*")}
    pictures = (path for path in found if path.is_file() and _PICTURE.fullmatch(path.name))
    return sorted(Path(os.path.relpath(path, page.parent.resolve())).as_posix() for path in pictures)


_PICTURE = re.compile(r"[\w./-]+\.(?:png|gif|jpg|svg)")
_lengths: dict[tuple[str, str, str, bool], int] = {}
_lengths_lock = threading.Lock()
_drawing = threading.Lock()
"""Held while episodes of a number of steps are looked for, so that the members of a group find them once."""


class MiniWoBEnv(gym.Env[Any, str]):
    """A task of MiniWoB++; actions are commands in text, observations text, a screenshot or both.

    The reward is the page's own at the end of an episode, -1 to 1, and 0 before. ``terminated`` when the page has given
    it, and after ``done``; ``truncated`` after ``max_steps`` commands. ``info`` holds ``task`` (the instruction),
    ``task_name``, ``admissible_commands`` (sorted: clicks, and quoted words of the instruction typed), ``score``,
    ``max_score``, ``success``; after a step ``format_ok``, whether the command could be read; where there is an
    expert, after a reset ``episode_steps``, how many steps it takes, and after a step ``type_correct`` and
    ``argument_score`` of the command beside the expert's and ``action_type``, its kind; and with ``expert`` the
    ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        task: str | Sequence[str] = "click-button",
        observation: str = "text",
        split: str = "train",
        max_steps: int = 30,
        positions: bool = False,
        timed: bool = False,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments; the browser starts with the first reset.

        Args:
            task: Name of a task or several, of which each reset draws one; ``all`` for every page, ``scripted`` for
                those that have an expert.
            observation: ``text``; ``image``: the instruction as ``text`` and the screenshot as ``image``, ``uint8`` of
                shape ``(210, 160, 3)``; or ``both``, with the elements in ``text``.
            split: ``train``, ``dev`` or ``test``: the same seed is another episode in each.
            max_steps: Commands until ``truncated``.
            positions: Let every element say where it is.
            timed: Keep the page's limit (most: 10 s) and its reward, which shrinks towards it; a step takes 0.5 s of
                the page's time.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None, ``ansi`` or ``rgb_array``.

        Raises:
            ConfigError: A wrong argument.
            MissingDependency: The package or the browser is not installed.
        """
        if observation not in OBSERVATIONS:
            raise unknown("observation", str(observation), OBSERVATIONS)
        if split not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi", "rgb_array"):
            raise unknown("render_mode", str(render_mode), ["ansi", "rgb_array"])
        chromium.program()
        self.tasks = _tasks(task)
        self.observation, self.split, self.max_steps, self.positions = observation, split, max_steps, positions
        self.timed, self.expert, self.render_mode = timed, expert, render_mode
        self._numbers = observation != "image"
        self.instructions = _INSTRUCTIONS if self._numbers else _POINTED_INSTRUCTIONS
        self.action_space = UnicodeText()
        self.observation_space: gym.Space[Any] = UnicodeText()
        self._draws = observation != "text" or render_mode == "rgb_array"
        if observation != "text":
            image = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            self.observation_space = gym.spaces.Dict({"text": UnicodeText(), "image": image})
        self._page: chromium.Page | None = None
        self._playing, self._text = False, ""
        self._shares = False
        self._share()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Chooses the task, if there are several, and the episode. Drawn from ``np_random`` if None.
            options: ``task``, ``split``, ``expert`` for this episode instead of the constructor's; ``steps``: fewest
                and most steps of the expert, None for no bound; a task without an expert is not drawn then.

        Returns:
            The instruction and what is seen, and ``info``.

        Raises:
            ConfigError: A wrong option.
            EnvError: The browser failed.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        tasks = _tasks(options.pop("task")) if "task" in options else self.tasks
        split = options.pop("split", self.split)
        self._hint = bool(options.pop("expert", self.expert))
        steps = options.pop("steps", None)
        if options:
            raise unknown("reset option", next(iter(options)), ["task", "split", "expert", "steps"])
        if split not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        self._playing = False
        with _drawing if steps is not None else contextlib.nullcontext():
            episode, length = self._draw(tasks, split, seed, steps)
        state = self._start(episode)
        self._steps, self._playing = 0, True
        self._see(state, "")
        return self._observe(), self._info({} if length is None else {"episode_steps": length})

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do one command; what is wrong with it is said in the observation.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            EnvError: The browser failed.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        command, note = None, ""
        try:
            command = parse(action, self._numbers)
        except Mistake as mistake:
            note = str(mistake)
        scores = self._compare(command)
        self._playing = False  # a browser that fails now leaves no episode behind
        state = self._do(command or Command("nothing"))
        self._steps += 1
        note = note or state["problem"]
        self._see(state, f"{note[:1].upper()}{note[1:]}." if note else "")
        terminated = self._over or (command is not None and command.kind == "done")
        truncated = not terminated and self._steps >= self.max_steps
        self._playing = not (terminated or truncated)
        return self._observe(), self._score, terminated, truncated, self._info(scores)

    def render(self) -> Any:
        """The last observation as text or, with ``rgb_array``, what is on the screen."""
        if self.render_mode == "rgb_array" and self._page is not None:
            return self._screenshot()
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the page; the browser ends with its last one. Safe to call again."""
        page, self._page = self._page, None
        self._playing = False
        if page is not None:
            page.close()
        if self._shares:
            self._shares = False
            chromium.release()

    def _share(self) -> None:
        if not self._shares:
            self._shares = True
            chromium.acquire()

    def _draw(
        self, tasks: Sequence[str], split: str, seed: int | None, steps: Any
    ) -> tuple[tuple[str, str, str], int | None]:
        """An episode, and how many steps the expert takes; one of the steps that are asked for, if any are."""
        low, high = _bounds(steps)
        for draw in range(_DRAWS):
            self._task_name = tasks[int(self.np_random.integers(len(tasks)))]
            number = int(self.np_random.integers(2**31)) if seed is None or draw else seed
            episode = (self._task_name, split, f"{split} {number}")
            length = self._length(episode)
            if steps is None or (length is not None and low <= length <= high):
                return episode, length
        raise ConfigError(f"steps is {steps}: none of {_DRAWS} episodes of {len(tasks)} tasks takes so many")

    def _start(self, episode: tuple[str, str, str]) -> dict[str, Any]:
        """Begin an episode in the page."""
        name, split, seed = episode
        self._share()
        path = pages()[name]
        folder, document = str(path.parents[1]), f"{path.parent.name}/{path.name}"
        if self._page is None or self._page.dead:
            self._page = None
            self._page = chromium.open_page(WIDTH, HEIGHT, self._draws, folder, _script(), document)
        if self._page.document != document or name in RELOADED:
            self._page.load(document, f"agentgym.keep({json.dumps(_pictures(path))})")
        mode = json.dumps([seed, split, self.timed, not self._numbers])
        return self._ask(f"agentgym.reset(...{mode})")

    def _do(self, command: Command) -> dict[str, Any]:
        passes = WAIT_MS if command.kind == "wait" else STEP_MS
        return self._ask(f"agentgym.step({json.dumps(command.call())}, {passes})")

    def _ask(self, expression: str) -> dict[str, Any]:
        if self._page is None:
            raise EnvError("this environment is closed")
        return json.loads(self._page.evaluate(expression))

    def _see(self, state: dict[str, Any], note: str) -> None:
        self._goal, self._over = state["goal"], bool(state["done"])
        self._score = float(state["timed" if self.timed else "raw"]) if self._over else 0.0
        self._elements: list[Element] = elements(state["elements"])
        self._text = tell(self._goal, self._elements, self.positions, note)
        self._note = note

    def _observe(self) -> Any:
        if self.observation == "text":
            return self._text
        text = (
            self._text if self.observation == "both" else "\n".join(filter(None, [self._note, f"Task: {self._goal}"]))
        )
        return {"text": text, "image": self._screenshot()}

    def _screenshot(self) -> Any:
        from PIL import Image

        assert self._page is not None
        with Image.open(io.BytesIO(self._page.screenshot())) as image:
            return np.asarray(image.convert("RGB"))

    def _advice(self) -> list[str]:
        """The commands that the expert of the task would give now."""
        found = self._expert()
        advice = found(self._goal, Page(self._elements)) if found and not self._over else []
        return advice if self._numbers else self._pointed(advice)

    def _expert(self) -> Expert | None:
        seen = self._numbers or self._task_name not in _NOT_DRAWN
        return EXPERTS.get(self._task_name) if seen else None

    def _pointed(self, told: Sequence[str]) -> list[str]:
        """Commands as one gives them who sees a picture only, in their order."""
        size = (WIDTH, HEIGHT)
        return [text for text in dict.fromkeys(pointed(parse(c), self._elements, size) for c in told) if text]

    def _compare(self, command: Command | None) -> dict[str, Any]:
        """``format_ok``, and where there is an expert ``type_correct``, ``argument_score`` and ``action_type``."""
        read = {"format_ok": command is not None}
        if self._expert() is None:
            return read
        boxes = {element.number: element.box for element in self._elements}
        wanted = [parse(text, self._numbers) for text in self._advice()]
        same = [likeness(command, other, boxes) for other in wanted if command and command.kind == other.kind]
        kind = {"action_type": wanted[0].kind} if wanted else {}
        return {**read, "type_correct": float(bool(same)), "argument_score": max(same, default=0.0), **kind}

    def _length(self, episode: tuple[str, str, str]) -> int | None:
        """How many steps the expert takes; where that differs it is played once for each episode, and remembered."""
        if self._expert() is None or (episode[0] in STEPS and self._numbers):
            return STEPS.get(episode[0]) if self._numbers else None
        with _lengths_lock:
            known = _lengths.get((*episode, self._numbers))
        if known is not None:
            return known
        self._see(self._start(episode), "")
        count = 0
        while count < LONGEST_PLAN and (advice := self._advice()):
            self._see(self._do(parse(advice[0], self._numbers)), "")
            count += 1
        with _lengths_lock:
            if len(_lengths) > 100_000:
                _lengths.clear()
            _lengths[*episode, self._numbers] = count
        return count

    def _admissible(self) -> list[str]:
        told = commands(self._goal, self._elements)
        return told if self._numbers else sorted(self._pointed(told))

    def _info(self, more: dict[str, Any]) -> dict[str, Any]:
        info = {
            "admissible_commands": self._admissible() if not self._over else [],
            "score": self._score,
            "max_score": 1.0,
            "success": self._score > 0.99 if not self.timed else self._score > 0,
            "task": self._goal,
            "task_name": self._task_name,
            **more,
        }
        if self._hint and self._expert() is not None:
            info["expert_action"] = next(iter(self._advice()), None)
        return info


def _bounds(steps: Any) -> tuple[int, int]:
    """The fewest and the most steps."""
    if steps is None:
        return 0, LONGEST_PLAN
    whole = isinstance(steps, Sequence) and [type(n) for n in steps] in ([int, int], [int, type(None)])
    if not whole or not 0 <= steps[0] <= (LONGEST_PLAN if steps[1] is None else steps[1]):
        raise ConfigError(f"steps is {steps!r}: it must be the fewest steps of the expert, and the most or None")
    return steps[0], LONGEST_PLAN - 2 if steps[1] is None else steps[1]


def _tasks(task: Any) -> tuple[str, ...]:
    names = [task] if isinstance(task, str) else list(task) if isinstance(task, Sequence) else [task]
    found: list[str] = []
    for name in names:
        if name == "all":
            found += pages()
        elif name == "scripted":
            found += sorted(EXPERTS)
        elif name in pages():
            found.append(name)
        else:
            raise unknown("task", str(name), ["all", "scripted", *pages()])
    if not found:
        raise ConfigError("task is empty: name one or more tasks, or all")
    return tuple(dict.fromkeys(found))
