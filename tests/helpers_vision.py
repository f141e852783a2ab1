"""A screen with a square to be clicked, and tiny models that see it; importing this registers test/Square-v0."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agentgym.learner.model import prepare, renderer_of
from agentgym.learner.tiny import train_tokenizer
from agentgym.learner.tiny_vision import add_images, build_model
from agentgym.policies.hf import HFPolicy
from agentgym.spaces import UnicodeText

FAMILIES = ("smolvlm", "idefics3", "qwen2_5_vl", "qwen3_vl")
COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 200)}


class Square(gym.Env[dict[str, Any], str]):
    """Shows a square in one of the cells of a grid, each round another one; the reward is for a click in it."""

    instructions = "Click the square: click X Y"

    def __init__(self, rounds: int = 2, size: tuple[int, int] = (64, 96), cells: int = 2, say: str = ""):
        """Play ``rounds`` rounds on a screen of ``size`` (height, width) of ``cells`` x ``cells`` cells."""
        self.rounds, self.size, self.cells, self.say = rounds, size, cells, say
        image = gym.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"text": UnicodeText(), "image": image})
        self.action_space = UnicodeText()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw the squares of all rounds."""
        super().reset(seed=seed)
        self.places = self.np_random.integers(0, self.cells, (self.rounds, 2)).tolist()
        self.colours = [str(c) for c in self.np_random.choice(list(COLOURS), self.rounds)]
        self.round = self.right = 0
        return self._observation(), self._info()

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Click."""
        found = re.fullmatch(r"\s*click (\d{1,4}) (\d{1,4})\s*", action)
        y, x = self.places[self.round]
        height, width = self._cell
        hit = found is not None and (int(found[2]) // height, int(found[1]) // width) == (y, x)
        self.right += hit
        self.round += 1
        over = self.round == self.rounds
        return self._observation(), float(hit) / self.rounds, over, False, self._info()

    @property
    def _cell(self) -> tuple[int, int]:
        return self.size[0] // self.cells, self.size[1] // self.cells

    def _observation(self) -> dict[str, Any]:
        screen = np.full((*self.size, 3), 240, np.uint8)
        if self.round == self.rounds:
            return {"text": "over", "image": screen}
        (y, x), (height, width) = self.places[self.round], self._cell
        screen[y * height : (y + 1) * height, x * width : (x + 1) * width] = COLOURS[self.colours[self.round]]
        return {"text": f"{self.say}{self.colours[self.round]}", "image": screen}

    def _info(self) -> dict[str, Any]:
        y, x = self.places[min(self.round, self.rounds - 1)]
        height, width = self._cell
        centre = f"{x * width + width // 2} {y * height + height // 2}"
        return {"expert_action": f"click {centre}", "success": self.right == self.rounds}


if "test/Square-v0" not in gym.registry:
    gym.register("test/Square-v0", entry_point=f"{__name__}:Square", disable_env_checker=True)

TEXTS = ["Click the square: click X Y. Answer with one command and nothing else.", "red green blue over click 24 16"]


def seeing_model(family: str, seed: int = 0, tiles: int = 1, sharp: float = 6.0) -> tuple[Any, Any, Any]:
    """A tiny model, its tokenizer and its eyes; ``sharp`` scales its embeddings, so that it is not indifferent."""
    tokenizer = train_tokenizer(TEXTS, 300)
    add_images(tokenizer, family, tiles)
    model, vision = build_model(family, tokenizer, seed, 48, 2, 4, 2048, tiles, 32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharp)
    return model.eval(), tokenizer, vision


def seeing_policy(family: str, name: str = "tiny", seed: int = 0, tiles: int = 1, **settings: Any) -> HFPolicy:
    """A policy with fresh weights that sees."""
    model, tokenizer, vision = seeing_model(family, seed, tiles)
    return HFPolicy(prepare(model, vision), renderer_of(tokenizer, vision), name, **settings)
