"""Policies without a model: the expert, a random one, canned actions. They read ``info``, not the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import ConfigError, EngineError
from agentgym.policies.base import Generation, Request
from agentgym.renderer import ByteTokenizer, Renderer


class _ScriptedSession:
    live = True

    def __init__(self, policy: ScriptedPolicy):
        self.policy = policy
        self.turn = 0

    def begin(self, key: tuple[int, ...], group: str) -> None:
        self.turn = 0

    async def generate(self, request: Request) -> Generation:
        action = self.policy.act(request.info, self.turn, request.rng)
        self.turn += 1
        try:
            ids = request.encode_action(action)
        except ValueError as error:
            raise EngineError(
                f"the {self.policy.name} policy wants {action!r}, which rollout.codec cannot write: {error}"
            ) from error
        return Generation(ids, [0.0] * len(ids), -1, "stop")

    def close(self) -> None:
        pass


class ScriptedPolicy:
    """Base of the scripted policies: ``act`` is all they define."""

    name = "scripted"
    version = -1
    context_limit: int | None = None

    def __init__(self, renderer: Renderer | None = None):
        """Write in the tokens of ``renderer``, by default in bytes."""
        self.renderer = renderer or Renderer(ByteTokenizer())
        self.env_options: dict[str, Any] = {}

    def act(self, info: Mapping[str, Any], turn: int, rng: np.random.Generator) -> str:
        """Return the action of this turn."""
        raise NotImplementedError

    def open(self) -> _ScriptedSession:
        """Open a place for episodes."""
        return _ScriptedSession(self)

    async def score(self, ids: list[int], start: int) -> list[float]:
        """Scripted policies have no distribution over tokens."""
        raise EngineError(f"the {self.name} policy cannot score tokens: use hf:FOLDER")

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Scripted policies have no weights."""
        raise EngineError(f"the {self.name} policy has no weights to load")


class RandomPolicy(ScriptedPolicy):
    """A random admissible command."""

    name = "random"

    def act(self, info: Mapping[str, Any], turn: int, rng: np.random.Generator) -> str:
        """Draw uniformly from ``info["admissible_commands"]``."""
        if "admissible_commands" not in info:
            raise ConfigError(f"the {self.name} policy needs an environment whose info holds admissible_commands")
        commands = info["admissible_commands"]
        if not commands:
            raise EngineError(f"the {self.name} policy has no admissible command to choose from")
        return str(commands[int(rng.integers(len(commands)))])


class ExpertPolicy(RandomPolicy):
    """The environment's own expert, which plans again after every deviation.

    Attributes:
        noise: Share of turns in which a random admissible command is played instead.
    """

    name = "expert"

    def __init__(self, renderer: Renderer | None = None, noise: float = 0.0):
        """Ask the environment for expert hints.

        Raises:
            ConfigError: If ``noise`` is not a probability.
        """
        super().__init__(renderer)
        if not 0 <= noise <= 1:
            raise ConfigError(f"expert noise {noise}: it must be between 0 and 1")
        self.noise = noise
        self.env_options = {"expert": True}

    def act(self, info: Mapping[str, Any], turn: int, rng: np.random.Generator) -> str:
        """Follow ``info["expert_action"]``; where that is None the game is lost and any command will do."""
        if self.noise and rng.random() < self.noise:
            return super().act(info, turn, rng)
        if "expert_action" not in info:
            raise ConfigError("the environment has no expert: its info holds no expert_action")
        return str(info["expert_action"] or super().act(info, turn, rng))


class CannedPolicy(ScriptedPolicy):
    """A fixed list of actions; the last one repeats."""

    name = "canned"

    def __init__(self, actions: Sequence[str], renderer: Renderer | None = None):
        """Play ``actions``.

        Raises:
            ConfigError: If the list is empty.
        """
        super().__init__(renderer)
        if not actions:
            raise ConfigError("the canned policy needs at least one action")
        self.actions = list(actions)

    def act(self, info: Mapping[str, Any], turn: int, rng: np.random.Generator) -> str:
        """Return the action of this turn."""
        return self.actions[min(turn, len(self.actions) - 1)]
