"""What environments have in common whose actions are tool calls in a box: the box, the calls, the end by `submit`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.sandboxes import choose, open_sandbox
from agentgym.sandboxes.base import Limits, Sandbox
from agentgym.sandboxes.tools import Tool, Toolbox, check_settings, schema
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, SandboxError, unknown
from agentgym.spaces import UnicodeText
from agentgym.tool_calls import Call, CallError, canonical, parse_calls
from agentgym.types import ToolUse

SPLITS = ("train", "dev", "test")
LEVELS = (1, 2, 3)
_LONGEST = 1 << 21


@dataclass(frozen=True)
class Problem:
    """A task of such an environment.

    Attributes:
        text: What the agent is asked.
        plan: The calls of an expert.
        printed: Whether the answer is the last line of what the last of them says; otherwise it is ``done``.
    """

    text: str
    plan: tuple[Call, ...]
    printed: bool = True


Maker = Callable[[np.random.Generator, int], Problem]
"""Makes a problem of a level."""


class ToolEnv(gym.Env[str, str]):
    """Problems solved by tool calls in a box; a subclass says how a box is set up and what is right.

    An action is one call or several, as any text that `agentgym.tool_calls.parse_calls` reads. What cannot be read, an
    unknown tool and wrong arguments are answered with an error; they cost a step like any other action.

    Attributes:
        tools: JSON schemas of the tools.
        instructions: What an agent reads first, the schemas included.
        calls: The calls of tools that the last step made, for logs.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        makers: Mapping[str, Maker],
        tools: Sequence[Tool],
        instructions: str,
        *,
        task: str | None,
        level: int | None,
        split: str,
        max_steps: int,
        backend: str,
        limits: Limits | Mapping[str, Any] | None,
        timeout: float,
        max_output: int,
        expert: bool,
        render_mode: str | None,
    ):
        """Check the arguments; the box is opened by the first reset.

        Args:
            makers: The kinds of problems.
            tools: What an agent may call.
            instructions: What it is told of the environment.
            task: One of ``makers``, or None for all of them.
            level: 1 to 3, or None for all of them.
            split: ``train``, ``dev`` or ``test``.
            max_steps: Actions until ``truncated``.
            backend: Backend of the sandbox.
            limits: What the box may use, as `Limits` or its fields.
            timeout: Seconds that a call may take.
            max_output: Bytes of each stream that a call may show.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
            SandboxUnavailable: If ``backend`` is ``auto`` and there is none here.
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        check_settings(timeout, max_output)
        choose(backend)
        self._makers, self._functions = makers, tuple(tools)
        self._check_choice(task, level, split)
        self.task, self.level, self.split, self.max_steps, self.expert = task, level, split, max_steps, expert
        self.backend, self.limits, self.timeout, self.max_output = backend, _limits(limits), timeout, max_output
        self.render_mode = render_mode
        self.tools = [schema(tool) for tool in tools]
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        self.instructions = f"{instructions}\n\n<tools>\n{lines}\n</tools>"
        self.observation_space = UnicodeText(_LONGEST)
        self.action_space = UnicodeText(_LONGEST)
        self.calls: list[ToolUse] = []
        self._box: Sandbox | None = None
        self._playing = False
        self._text = ""

    def set_up(self, box: Sandbox, problem: Any) -> None:
        """Put into a clean box what a problem needs."""

    def is_right(self, box: Sandbox, problem: Any, answer: str) -> bool:
        """Whether the problem is solved."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a problem in a clean box.

        Args:
            seed: Chooses the problem of the split. Drawn from ``np_random`` if None.
            options: ``task``, ``level``, ``split``, ``expert`` for this episode instead of the constructor's.

        Returns:
            The problem, and ``info``.

        Raises:
            ConfigError: A wrong option.
            SandboxError: If no clean box is to be had.
        """
        super().reset(seed=seed)
        chosen: dict[str, Any] = {"task": self.task, "level": self.level, "split": self.split, "expert": self.expert}
        for name in options or {}:
            if name not in chosen:
                raise unknown("reset option", name, chosen)
        chosen |= options or {}
        self._check_choice(chosen["task"], chosen["level"], chosen["split"])
        self._playing = False
        number = int(self.np_random.integers(1 << 31)) if seed is None else seed
        rng = np.random.default_rng([SPLITS.index(chosen["split"]), number])
        kind, level = int(rng.integers(len(self._makers))), int(rng.integers(len(LEVELS)))
        self._kind = chosen["task"] or list(self._makers)[kind]
        self._level = chosen["level"] or LEVELS[level]
        self._problem = self._makers[self._kind](rng, self._level)
        box = self._clean_box()
        self.set_up(box, self._problem)
        self._toolbox = Toolbox(box, self._functions, self.timeout, self.max_output)
        self._hints, self._planned, self._printed = bool(chosen["expert"]), 0, ""
        self._steps, self._success, self._playing = 0, False, True
        self._text = self._problem.text
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make the calls of an action; `submit` ends the episode.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            SandboxError: If the box failed, which says nothing about the agent.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._steps += 1
        self.calls = self._toolbox.calls = []
        try:
            self._text = self._make(parse_calls(action))
            answer = self._toolbox.submitted
            if answer is not None:
                self._success = self.is_right(self._toolbox.box, self._problem, answer)
                self._text += "\nRight." if self._success else "\nWrong."
        except CallError as error:
            self._text = f"[error: {error}]"
        except BaseException:
            self.close()
            raise
        terminated = self._toolbox.submitted is not None
        truncated = not terminated and self._steps >= self.max_steps
        self._playing = not (terminated or truncated)
        return self._text, float(self._success), terminated, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Remove the box. Safe to call again."""
        self._playing = False
        box, self._box = self._box, None
        if box is not None:
            box.close()

    def _make(self, calls: list[Call]) -> str:
        said = []
        for number, call in enumerate(calls, start=1):
            text = self._toolbox.call(call.name, call.arguments)
            if self._planned < len(self._problem.plan) and call == self._problem.plan[self._planned]:
                self._planned += 1
                self._printed = text.rpartition("\n")[2]
            said.append(text if len(calls) == 1 else f"[call {number} of {len(calls)}: {call.name}]\n{text}")
            if self._toolbox.submitted is not None:
                break
        return "\n".join(said)

    def _clean_box(self) -> Sandbox:
        if self._box is not None and self._box.alive:
            with contextlib.suppress(SandboxError):
                self._box.reset()
                return self._box
        self.close()
        self._box = open_sandbox(self.backend, limits=self.limits)
        return self._box

    def _check_choice(self, task: str | None, level: int | None, split: str) -> None:
        if task is not None and task not in self._makers:
            raise unknown("task", str(task), self._makers)
        if level is not None and level not in LEVELS:
            raise ConfigError(f"level is {level!r}: it must be {', '.join(map(str, LEVELS))} or None")
        if split not in SPLITS:
            raise unknown("split", str(split), SPLITS)

    def _hint(self) -> str:
        """The expert's next action. It goes through its plan, whatever else was done in between."""
        plan = self._problem.plan
        answer = self._printed if self._problem.printed else "done"
        return canonical([plan[self._planned] if self._planned < len(plan) else Call("submit", {"answer": answer})])

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "score": float(self._success),
            "max_score": 1.0,
            "success": self._success,
            "task": self._kind,
            "level": self._level,
        }
        if self._hints:
            info["expert_action"] = self._hint() if self._playing else None
        return info


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits | None:
    if limits is None or isinstance(limits, Limits):
        return limits
    names = [field.name for field in dataclasses.fields(Limits)]
    for name in limits:
        if name not in names:
            raise unknown("sandbox limit", str(name), names)
    return Limits(**limits)
