"""Overcooked (tomato salad) with the same commands in more words: what is done stays, what is written grows."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from agentgym.envs.overcooked import OvercookedEnv

FRAMES = {
    "short": "{}",
    "long": "with both hands and without any haste I {} and then look around in the kitchen again",
}


class LongOvercookedEnv(OvercookedEnv):
    """Commands stand in a frame of words; without it they are none."""

    def __init__(self, frame: str = "short", **kwargs: Any):
        """Take a key of `FRAMES`, and what the kitchen takes."""
        self.before, self.after = FRAMES[frame].split("{}")
        super().__init__(**kwargs)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do the command in the frame."""
        action = action.strip()
        framed = action.startswith(self.before) and action.endswith(self.after)
        return super().step(action.removeprefix(self.before).removesuffix(self.after) if framed else "")

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        info["admissible_commands"] = [self._framed(command) for command in info["admissible_commands"]]
        if info.get("expert_action"):
            info["expert_action"] = self._framed(info["expert_action"])
        return info

    def _framed(self, command: str) -> str:
        return f"{self.before}{command}{self.after}"


gym.register("study/LongOvercooked-v0", LongOvercookedEnv)
