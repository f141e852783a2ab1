"""A screen told in words: tasks of 1 to 12 clicks, asked for by length; importing this registers test/Clicks-v0.

It says of every click what CRAFT-GUI wants to know, or leaves it out where it is told to.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from agentgym.errors import ConfigError
from agentgym.spaces import UnicodeText

COLOURS = ("red", "green", "blue", "black")


class Clicks(gym.Env[str, str]):
    """Click what is named, with the left or the right button; the reward is 1 if every click was right."""

    instructions = "Click as told."

    def __init__(self, colours: int = 2, asks: bool = False, lacks: tuple[str, ...] = (), deaf: bool = False):
        """Leave ``lacks`` out of ``info``.

        Args:
            colours: How many colours there are.
            asks: The longest tasks are questions instead.
            lacks: Keys of ``info`` to leave out.
            deaf: Ignore the lengths that are asked for.
        """
        self.colours, self.asks, self.lacks, self.deaf = COLOURS[:colours], asks, tuple(lacks), deaf
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a task with a length in ``options["steps"]``."""
        super().reset(seed=seed)
        low, high = (options or {}).get("steps", [1, None])
        low, high = (1, 12) if self.deaf else (low, min(high or 12, 12))
        if low > high:
            raise ConfigError(f"there is no task of {low} steps or more")
        length = int(self.np_random.integers(low, high + 1))
        self.question = self.asks and length > 8
        self.length = 1 if self.question else length
        draw = [self.np_random.choice(("left", "right"), self.length), self.np_random.choice(self.colours, self.length)]
        self.gold = [f"{button} {colour}" for button, colour in zip(*draw, strict=True)]
        self.at, self.right = 0, 0
        return self._text(), self._kept({"episode_steps": 0 if self.question else self.length, **self._hints()})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Compare a click, or an answer."""
        gold = self.gold[self.at]
        said = (*action.split(), "", "")
        kind, colour = gold.split()
        self.right += (action == colour) if self.question else action == gold
        self.at += 1
        over = self.at == self.length
        told: dict[str, Any] = {"reference": colour, "answer": action, "question": f"What colour is {colour}?"}
        if not self.question:
            told = {
                "type_correct": int(said[0] == kind),
                "argument_score": float(said[1] == colour),
                "gui_r1_accuracy": int(action == gold),
                "action_type": kind,
            }
        success = self.right == self.length
        info = {"success": over and success, **told, **({} if over else self._hints())}
        return "Done." if over else self._text(), float(over and success), over, False, self._kept(info)

    def _text(self) -> str:
        gold = self.gold[self.at]
        return f"What colour is {gold.split()[1]}?" if self.question else f"Click {gold}"

    def _hints(self) -> dict[str, Any]:
        gold = self.gold[self.at]
        commands = [*self.colours] if self.question else [f"{b} {c}" for b in ("left", "right") for c in self.colours]
        return {"expert_action": gold.split()[1] if self.question else gold, "admissible_commands": commands}

    def _kept(self, info: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in info.items() if key not in self.lacks}


if "test/Clicks-v0" not in gym.registry:
    gym.register("test/Clicks-v0", entry_point=f"{__name__}:Clicks", disable_env_checker=True)
