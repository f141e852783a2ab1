"""What is checked, and how its episodes are played and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from agentgym.env_worker import make_env

NONSENSE = ("", "wait", "xyzzy plugh", "I do not know what to do.")
"""Answers of a policy that does not try."""
_LONGEST = 25


@dataclass(frozen=True)
class Subject:
    """An environment to check.

    Attributes:
        spec: Its specification.
        kwargs: Arguments of ``gym.make``.
        options: Options of every ``reset``.
        seeds: Seeds of the episodes that are played.
    """

    spec: EnvSpec
    kwargs: dict[str, Any]
    options: dict[str, Any]
    seeds: tuple[int, ...]

    def register(self) -> None:
        """Make the id known in this process."""
        gym.registry[self.spec.id] = self.spec

    def make(self) -> gym.Env[str, str]:
        """Make one."""
        return make_env(self.spec.id, self.kwargs)


@dataclass(frozen=True)
class Step:
    """What a reset (action None) or a step returned."""

    action: str | None
    observation: Any
    info: dict[str, Any]
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False

    @property
    def over(self) -> bool:
        """Whether the episode ended here."""
        return bool(self.terminated or self.truncated)

    def frozen(self) -> dict[str, str]:
        """A copy as JSON text by part, which later steps cannot change, to compare with others."""
        parts = {"action": self.action, "observation": self.observation, "reward": self.reward}
        parts |= {"terminated": self.terminated, "truncated": self.truncated}
        parts |= {f"info[{key!r}]": value for key, value in self.info.items()}
        return {name: json.dumps(_plain(value), sort_keys=True) for name, value in parts.items()}


Transcript = list[dict[str, str]]


def steps(env: gym.Env[str, str], seed: int, options: dict[str, Any], actions: Iterator[str] | None) -> Iterator[Step]:
    """Play an episode, with these actions or with the reproducible mixture of expert, random and wrong ones."""
    observation, info = env.reset(seed=seed, options=dict(options))
    step = Step(None, observation, info)
    yield step
    rng = np.random.default_rng(0)
    while not step.over:
        action = next(actions, None) if actions is not None else _mixed(step.info, rng)
        if action is None:
            return
        observation, reward, terminated, truncated, info = env.step(action)
        step = Step(action, observation, info, reward, terminated, truncated)
        yield step


def _mixed(info: dict[str, Any], rng: np.random.Generator) -> str:
    chance, commands = rng.random(), info.get("admissible_commands") or NONSENSE
    if chance < 0.5 and info.get("expert_action"):
        return str(info["expert_action"])
    if chance < 0.9:
        return str(commands[int(rng.integers(len(commands)))])
    return NONSENSE[int(rng.integers(len(NONSENSE)))]


def transcript(env: gym.Env[str, str], seed: int, options: dict[str, Any]) -> Transcript:
    """The first steps of an episode with mixed actions, frozen."""
    return [step.frozen() for step, _ in zip(steps(env, seed, options, None), range(_LONGEST), strict=False)]


def transcripts(env: gym.Env[str, str], seeds: Sequence[int], options: dict[str, Any]) -> list[Transcript]:
    """A transcript for each seed."""
    return [transcript(env, seed, options) for seed in seeds]


def difference(seeds: Sequence[int], one: Sequence[Transcript], other: Sequence[Transcript]) -> str | None:
    """Where two lists of transcripts differ first, or None."""
    for seed, left, right in zip(seeds, one, other, strict=True):
        for number in range(max(len(left), len(right))):
            where = f"seed {seed}, {f'step {number}' if number else 'reset'}"
            if number >= min(len(left), len(right)):
                return f"{where}: one episode has ended and the other goes on"
            if found := differing(left[number], right[number]):
                return f"{where}: {found}"
    return None


def differing(left: dict[str, str], right: dict[str, str]) -> str | None:
    """The first part in which two frozen steps differ, shown where they part."""
    for name in {**left, **right}:
        a, b = left.get(name, "(absent)"), right.get(name, "(absent)")
        if a != b:
            start = max(0, next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0) - 20)
            return f"{name} is {_cut(a[start:])} and {_cut(b[start:])}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:70]}..."


def _plain(value: Any) -> Any:
    """JSON values; what JSON cannot hold is shown as its type."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value if isinstance(value, str | int | float | None) else f"<{type(value).__name__}>"
