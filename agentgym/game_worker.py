"""An AEC game on a thread of its own: one call plays a move and tells who is next and what everybody received."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from agentgym.env_worker import EnvThread, EnvWorker
from agentgym.errors import ConfigError, EnvError


@dataclass
class Scene:
    """A game between two decisions.

    Attributes:
        agent: Who is to decide; None when the game is over.
        observation: What that agent sees.
        info: Its ``info``.
        rewards: What every agent received since the last decision.
        invalid: Why the last answer was refused, "" if it was not.
        left: Agents whose game ended: last observation, last ``info``, and whether it was truncated.
        metrics: What the environment counted, when the game is over.
    """

    agent: str | None = None
    observation: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    invalid: str = ""
    left: dict[str, tuple[str, dict[str, Any], bool]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Deal:
    """What a game begins with.

    Attributes:
        name: Name of the environment.
        agents: All that may play.
        infos: Their ``info`` after the reset: their roles, where there are any.
        scene: The first scene.
    """

    name: str
    agents: list[str]
    infos: dict[str, dict[str, Any]]
    scene: Scene


class GameThread(EnvThread):
    """One AEC environment on a daemon thread."""

    def __init__(self, factory: Callable[[], Any]):
        """Start the thread; the environment is made in it on the first call."""
        super().__init__(factory)

    def _deal(self, seed: int, options: dict[str, Any]) -> Deal:
        env: Any = self._make()
        if not all(hasattr(env, name) for name in ("possible_agents", "observe", "reset", "step")):
            raise ConfigError(f"make_env returned {type(env).__name__}, which is no AEC environment of PettingZoo")
        env.reset(seed=seed, options=dict(options))
        name = str(getattr(env.unwrapped, "metadata", {}).get("name", type(env.unwrapped).__name__))
        infos = {agent: dict(env.infos[agent]) for agent in env.agents}
        return Deal(name, list(env.possible_agents), infos, self._scene(Scene()))

    def _play(self, text: str) -> Scene:
        env: Any = self._env
        agent, scene = env.agent_selection, Scene()
        env.step(text)
        scene.invalid = str(env.infos.get(agent, {}).get("invalid") or "")
        self._receive(scene)
        return self._scene(scene)

    def _receive(self, scene: Scene) -> None:
        env: Any = self._env
        for agent, reward in env.rewards.items():
            if not math.isfinite(reward):
                raise EnvError(f"the reward of {agent} is {reward}")
            scene.rewards[agent] = scene.rewards.get(agent, 0.0) + float(reward)

    def _scene(self, scene: Scene) -> Scene:
        """Go on to the next decision, past agents whose game is over."""
        env: Any = self._env
        while env.agents:
            agent = env.agent_selection
            if not (env.terminations[agent] or env.truncations[agent]):
                scene.agent, scene.observation, scene.info = agent, self._seen(agent), dict(env.infos[agent])
                scene.info.setdefault("instructions", getattr(env.unwrapped, "instructions", "You play a game."))
                return scene
            scene.left[agent] = (self._seen(agent), dict(env.infos[agent]), bool(env.truncations[agent]))
            env.step(None)
            self._receive(scene)
        if hasattr(env.unwrapped, "metrics"):
            scene.metrics = {name: float(value) for name, value in env.unwrapped.metrics().items()}
        return scene

    def _seen(self, agent: str) -> str:
        env: Any = self._env
        text = env.observe(agent)
        if not isinstance(text, str):
            raise EnvError(
                f"what {agent} observes must be text, but is {type(text).__name__}: agentgym.aec.TextAEC tells a game"
            )
        return text.encode(errors="replace").decode()


class GameWorker(EnvWorker):
    """A game as it is driven: awaited calls, each with a deadline."""

    def __init__(self, make_env: Callable[[], Any]):
        """Drive an environment that ``make_env`` makes."""
        super().__init__(GameThread(make_env))

    async def deal(self, seed: int, options: dict[str, Any], timeout: float) -> Deal:
        """Reset, making the environment first if need be.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """
        return cast(Deal, await self._call("deal", (seed, options), timeout))

    async def play(self, text: str, timeout: float) -> Scene:
        """Let the agent whose turn it is act.

        Raises:
            EnvError: If it failed or took longer than ``timeout`` seconds.
        """
        return cast(Scene, await self._call("play", (text,), timeout))
