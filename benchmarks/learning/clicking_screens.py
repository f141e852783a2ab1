"""A screen with squares of several colours, one of which is to be clicked: where it lies is seen, not said."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np

from agentgym.spaces import UnicodeText

SIDE, SQUARE, STEP = 128, 32, 32
"""Pixels of the screen, of a square, and between places where a square may lie."""
COLOURS = {"red": (205, 45, 40), "green": (45, 165, 70), "blue": (50, 80, 210), "yellow": (230, 195, 40)}
SPLITS = {"train": 0, "dev": 1, "test": 2}
_CLICK = re.compile(r"\s*click (\d{1,3}) (\d{1,3})\s*")


class SquaresEnv(gym.Env[dict[str, Any], str]):
    """Shows squares that do not overlap and names a colour; one click, worth 1 in the square of that colour, else 0."""

    instructions = f"The screen has {SIDE} by {SIDE} pixels. Click a square: click X Y"

    def __init__(self, squares: int = 2, blank: bool = False):
        """Show that many squares, at most one of each colour; or a blank screen, to see what a guess is worth."""
        self.squares, self.blank = squares, blank
        image = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"text": UnicodeText(), "image": image})
        self.action_space = UnicodeText()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw a screen; the same seed is another one in each split."""
        split = SPLITS[(options or {}).get("split", "train")]
        super().reset(seed=None if seed is None else len(SPLITS) * seed + split)
        names = self.np_random.permutation(list(COLOURS))[: self.squares]
        corners: list[np.ndarray] = []
        while len(corners) < self.squares:
            corner = STEP * self.np_random.integers(0, (SIDE - SQUARE) // STEP + 1, 2)
            if all(np.abs(corner - other).max() >= SQUARE for other in corners):
                corners.append(corner)
        self._screen = np.full((SIDE, SIDE, 3), 245, np.uint8)
        for name, (y, x) in zip(names, corners, strict=True) if not self.blank else ():
            self._screen[y : y + SQUARE, x : x + SQUARE] = COLOURS[str(name)]
        self._top, self._left = (int(v) for v in corners[0])
        centre = f"{self._left + SQUARE // 2} {self._top + SQUARE // 2}"
        return {"text": str(names[0]), "image": self._screen}, {"expert_action": f"click {centre}", "success": False}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Click."""
        found = _CLICK.fullmatch(action)
        x, y = (int(found[1]), int(found[2])) if found else (-1, -1)
        hit = self._left <= x < self._left + SQUARE and self._top <= y < self._top + SQUARE
        return {"text": "over", "image": self._screen}, float(hit), True, False, {"success": hit}


if "study/Squares-v0" not in gym.registry:
    gym.register("study/Squares-v0", entry_point=f"{__name__}:SquaresEnv", disable_env_checker=True)
