"""Evaluation over fixed held-out seeds, with intervals; it can be killed and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgym import seeding, store
from agentgym.env_worker import EnvConfig, EnvPool
from agentgym.errors import ConfigError
from agentgym.policies.base import Policy
from agentgym.rollout import Rollout, RolloutConfig, Task
from agentgym.types import Trajectory

_Z = 1.959963984540054
_ESTIMATES = {"success": "success", "return": "returns", "turns": "turns", "tokens": "tokens"}


@dataclass
class EvalSettings:
    """What ``agentgym eval`` takes from a config: where to play, and how."""

    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)


@dataclass
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    ci95: tuple[float, float]


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        env: Gymnasium id.
        policy: Name of the policy.
        seed: Seed of the evaluation.
        episodes: Episodes that count.
        failed: Episodes that failed for reasons outside the policy; they count nowhere.
        success: Share of successful episodes (Wilson interval).
        returns: Episode return (normal interval), written as ``return``.
        turns: Turns an episode.
        tokens: Sampled tokens an episode.
    """

    env: str
    policy: str
    seed: int
    episodes: int
    failed: int
    success: Estimate
    returns: Estimate
    turns: Estimate
    tokens: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        out: dict[str, Any] = {k: getattr(self, k) for k in ("env", "policy", "seed", "episodes", "failed")}
        for name, key in _ESTIMATES.items():
            estimate: Estimate = getattr(self, key)
            out[name] = {"mean": estimate.mean, "ci95": list(estimate.ci95)}
        return out

    def metrics(self) -> dict[str, float]:
        """As metrics of a run."""
        return {
            "eval/success": self.success.mean,
            "eval/success_lo": self.success.ci95[0],
            "eval/success_hi": self.success.ci95[1],
            "eval/return": self.returns.mean,
            "eval/turns": self.turns.mean,
            "eval/tokens": self.tokens.mean,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Rebuild from `to_dict`."""
        found = {k: data[k] for k in ("env", "policy", "seed", "episodes", "failed")}
        for name, key in _ESTIMATES.items():
            found[key] = Estimate(data[name]["mean"], tuple(data[name]["ci95"]))
        return cls(**found)


def wilson(successes: float, n: int) -> Estimate:
    """Share of successes with its Wilson score interval (Wilson 1927)."""
    if n == 0:
        return Estimate(math.nan, (math.nan, math.nan))
    p = successes / n
    scale = 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Estimate(p, (max(0.0, centre - half), min(1.0, centre + half)))


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean with the normal interval from the standard error."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, (math.nan, math.nan))
    mean = sum(values) / n
    half = _Z * math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1) / n)
    return Estimate(mean, (mean - half, mean + half))


def summarise(policy: str, seed: int, trajectories: Sequence[Trajectory]) -> Evaluation:
    """Summarise the episodes of an evaluation."""
    good = [t for t in trajectories if t.status and not t.status.failed]
    return Evaluation(
        env=trajectories[0].env_id if trajectories else "",
        policy=policy,
        seed=seed,
        episodes=len(good),
        failed=len(trajectories) - len(good),
        success=wilson(sum(bool(t.success) for t in good), len(good)),
        returns=mean_interval([t.episode_return for t in good]),
        turns=mean_interval([len(t.turns) for t in good]),
        tokens=mean_interval([t.action_tokens for t in good]),
    )


def eval_tasks(seed: int, episodes: int) -> list[Task]:
    """The fixed episodes of an evaluation: the first N are the same whatever N is."""
    return [
        Task(seeding.eval_seed(seed, i), seeding.eval_seed(seed, i), f"eval-{i:05d}", i, 0) for i in range(episodes)
    ]


def evaluate(
    pool: EnvPool,
    policy: Policy,
    config: RolloutConfig,
    episodes: int,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    log: Path | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> tuple[Evaluation, list[Trajectory]]:
    """Play the fixed episodes of a seed.

    Args:
        pool: Environments.
        policy: Who acts.
        config: How.
        episodes: How many.
        seed: Chooses the episodes.
        options: Options of ``env.reset``; ``{"split": "test"}`` by default.
        log: JSONL file that receives every episode at once; those in it already are not played again.
        on_episode: Called with every episode.

    Returns:
        The summary and the trajectories in the order of the episodes.

    Raises:
        ConfigError: If ``log`` holds another evaluation.
    """
    done: dict[str, Trajectory] = {}
    if log is not None and log.exists():
        done = {t.group: t for t in store.read(log)}
        _check_same(log, done, pool, policy, seed)

    def finished(trajectory: Trajectory) -> None:
        done[trajectory.group] = trajectory
        if log is not None:
            store.append(log, [trajectory])
        if on_episode:
            on_episode(trajectory)

    tasks = eval_tasks(seed, episodes)
    left = [t for t in tasks if t.group not in done]
    chosen = {"split": "test"} if options is None else options
    if left:
        Rollout(pool, policy, config, chosen, finished).collect(left)
    played = [done[t.group] for t in tasks]
    return summarise(policy.name, seed, played), played


def _check_same(log: Path, done: dict[str, Trajectory], pool: EnvPool, policy: Policy, seed: int) -> None:
    for group, trajectory in done.items():
        expected = (pool.env_id, policy.name, seeding.eval_seed(seed, int(group.split("-")[1])))
        if (trajectory.env_id, trajectory.policy, trajectory.env_seed) != expected:
            raise ConfigError(
                f"{log} holds another evaluation (of {trajectory.policy} on {trajectory.env_id}): use another --out"
            )
