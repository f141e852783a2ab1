"""Evaluation over fixed held-out seeds, with intervals; it can be killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgym import seeding, store
from agentgym.env_worker import EnvConfig, EnvPool
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.policies.base import Policy
from agentgym.rollout import Rollout, RolloutConfig, Task
from agentgym.types import Trajectory

_Z = 1.959963984540054
_ESTIMATES = {"success": "success", "return": "returns", "turns": "turns", "tokens": "tokens"}

HARMLESS = ("concurrency", "step_timeout", "episode_timeout", "retries", "max_failure_rate")
"""Rollout settings that do not change what an episode is."""


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
    return Estimate(p, (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half))


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
        log: JSONL file that receives every episode at once; those in it already are not played again, unless they
            failed. The settings are kept beside it, in a file with the suffix ``.json``.
        on_episode: Called with every episode.

    Returns:
        The summary and the trajectories in the order of the episodes.

    Raises:
        ConfigError: If ``log`` holds another evaluation, or cannot be written.
        TooManyFailures: If more episodes failed than ``max_failure_rate`` allows, or all of them.
    """
    chosen = {"split": "test"} if options is None else options
    done: dict[str, Trajectory] = {}
    if log is not None:
        _check_same(log, _identity(pool, policy, config, seed, chosen))
        if log.exists():
            done = {t.group: t for t in store.read(log) if t.status and not t.status.failed}

    def finished(trajectory: Trajectory) -> None:
        done[trajectory.group] = trajectory
        if log is not None:
            store.append(log, [trajectory])
        if on_episode:
            on_episode(trajectory)

    tasks = eval_tasks(seed, episodes)
    left = [t for t in tasks if t.group not in done]
    if left:
        Rollout(pool, policy, config, chosen, finished).collect(left)
    played = [done[t.group] for t in tasks]
    result = summarise(policy.name, seed, played)
    if not result.episodes:
        raise TooManyFailures(
            f"all {len(played)} episodes of {policy.name} on {pool.env_id} failed: {played[-1].error}"
        )
    return result, played


def _identity(
    pool: EnvPool, policy: Policy, config: RolloutConfig, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same for two episodes to belong to one evaluation, as JSON values."""
    rollout = {f"rollout.{k}": v for k, v in dataclasses.asdict(config).items() if k not in HARMLESS}
    env = {"env.id": pool.env_id, "env.kwargs": pool.kwargs, "env.eval_options": options}
    found: dict[str, Any] = json.loads(json.dumps({"policy": policy.name, "seed": seed, **env, **rollout}, default=str))
    return found


def _check_same(log: Path, identity: dict[str, Any]) -> None:
    """Compare with the settings kept beside the log, or keep them."""
    settings = log.with_suffix(".json")
    try:
        if log.exists() or settings.exists():
            old = json.loads(settings.read_text())
            for key, value in identity.items():
                if old.get(key) != value:
                    found = f"{key}: {old.get(key)!r}, not {value!r}"
                    raise ConfigError(f"{log} holds another evaluation, with {found}: use another --out")
            return
        with store.atomic_file(settings) as file:
            file.write(json.dumps(identity, indent=1).encode())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{settings} is damaged: use another --out") from error
    except OSError as error:
        raise ConfigError(f"cannot keep an evaluation in {log.parent}: {error}; use another --out") from error
