"""Evaluation over fixed held-out seeds, with intervals, and paired comparison; it can be killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgym import seeding, store
from agentgym.env_worker import EnvConfig, EnvPool
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.policies.base import Policy
from agentgym.renderer import holds_bytes
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
    """A mean and its 95 % interval; NaN where there is nothing to estimate."""

    mean: float
    ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any] | None:
        """As JSON values, None where there is nothing to estimate."""
        return None if math.isnan(self.mean) else {"mean": self.mean, "ci95": list(self.ci95)}

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> Estimate:
        """Rebuild from `to_dict`."""
        return NOTHING if data is None else cls(data["mean"], tuple(data["ci95"]))


NOTHING = Estimate(math.nan, (math.nan, math.nan))


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        env: Gymnasium id.
        policy: Name of the policy.
        seed: Seed of the evaluation.
        episodes: Episodes that count.
        failed: Episodes that failed for reasons outside the policy; they count nowhere.
        success: Share of successful episodes (Wilson interval); nothing if the environment has no notion of success.
        returns: Episode return (normal interval), written as ``return``.
        turns: Turns an episode.
        tokens: Sampled tokens an episode, as the model or its endpoint counts them; nothing for a policy without.
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
            out[name] = getattr(self, key).to_dict()
        return out

    def note(self) -> str:
        """In a word or two: success, or the return where the environment has no notion of success."""
        undefined = math.isnan(self.success.mean)
        return f"return {self.returns.mean:.3f}" if undefined else f"success {self.success.mean:.1%}"

    def metrics(self) -> dict[str, float]:
        """As metrics of a run, without those that are not defined."""
        found = {
            "eval/success": self.success.mean,
            "eval/success_lo": self.success.ci95[0],
            "eval/success_hi": self.success.ci95[1],
            "eval/return": self.returns.mean,
            "eval/turns": self.turns.mean,
            "eval/tokens": self.tokens.mean,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Rebuild from `to_dict`."""
        found = {k: data[k] for k in ("env", "policy", "seed", "episodes", "failed")}
        for name, key in _ESTIMATES.items():
            found[key] = Estimate.from_dict(data[name])
        return cls(**found)


def wilson(successes: float, n: int) -> Estimate:
    """Share of successes with its Wilson score interval (Wilson 1927)."""
    if n == 0:
        return NOTHING
    p = successes / n
    scale = 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Estimate(p, (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half))


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean with the normal interval from the standard error, whatever the order of the values."""
    n = len(values)
    if n == 0:
        return NOTHING
    mean = math.fsum(values) / n
    half = _Z * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, n - 1) / n)
    return Estimate(mean, (mean - half, mean + half))


def sampled_tokens(trajectory: Trajectory) -> int | None:
    """Tokens that the model sampled, as it or its endpoint counts them; None if they are not known.

    A policy that writes text (scripted, or behind an endpoint) is stored in bytes, which are no tokens of a model.
    """
    counted = trajectory.info.get("completion_tokens")
    if isinstance(counted, int):
        return counted
    return None if holds_bytes(trajectory) else trajectory.action_tokens


def summarise(policy: str, seed: int, trajectories: Sequence[Trajectory]) -> Evaluation:
    """Summarise the episodes of an evaluation."""
    good = [t for t in trajectories if _counts(t)]
    tokens = [n for n in map(sampled_tokens, good) if n is not None]
    return Evaluation(
        env=trajectories[0].env_id if trajectories else "",
        policy=policy,
        seed=seed,
        episodes=len(good),
        failed=len(trajectories) - len(good),
        success=wilson(sum(bool(t.success) for t in good), len(good)) if _knows_success(good) else NOTHING,
        returns=mean_interval([t.episode_return for t in good]),
        turns=mean_interval([len(t.turns) for t in good]),
        tokens=mean_interval(tokens if len(tokens) == len(good) else []),
    )


def _counts(trajectory: Trajectory) -> bool:
    return trajectory.status is not None and not trajectory.status.failed


def _knows_success(trajectories: Sequence[Trajectory]) -> bool:
    return any(t.success is not None for t in trajectories)


@dataclass
class Comparison:
    """A policy against another one on the same episodes.

    Attributes:
        baseline: Name of the other policy.
        episodes: Episodes that count for both.
        dropped: Episodes that failed for one of them at least, for reasons outside the policy.
        success: Difference of the shares of success (`paired_difference`).
        returns: Mean difference of the returns (normal interval of the differences), written as ``return``.
    """

    baseline: str
    episodes: int
    dropped: int
    success: Estimate
    returns: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        counts = {k: getattr(self, k) for k in ("baseline", "episodes", "dropped")}
        return {**counts, "success": self.success.to_dict(), "return": self.returns.to_dict()}


def compare(baseline: str, theirs: Sequence[Trajectory], ours: Sequence[Trajectory]) -> Comparison:
    """Compare two policies on the episodes that both played.

    Args:
        baseline: Name of the policy to compare with.
        theirs: Its episodes.
        ours: The episodes of the other policy.
    """
    others = {(t.group, t.env_seed): t for t in theirs}
    met = [(t, others[t.group, t.env_seed]) for t in ours if (t.group, t.env_seed) in others]
    pairs = [(a, b) for a, b in met if _counts(a) and _counts(b)]
    success = NOTHING
    if _knows_success([a for a, _ in pairs]) and _knows_success([b for _, b in pairs]):
        won = Counter((bool(a.success), bool(b.success)) for a, b in pairs)
        success = paired_difference(won[True, True], won[True, False], won[False, True], won[False, False])
    differences = [a.episode_return - b.episode_return for a, b in pairs]
    return Comparison(baseline, len(pairs), len(met) - len(pairs), success, mean_interval(differences))


def paired_difference(both: int, first: int, second: int, neither: int) -> Estimate:
    """Difference of two shares over the same n episodes: square and add, with the correlation of the pairs.

    Newcombe (1998), Improved confidence intervals for the difference between binomial proportions based on paired
    data, Statistics in Medicine 17:2635, method 10: the Wilson limits l, u of both shares p and q give

        p - q - sqrt((p - l_p)² - 2φ(p - l_p)(u_q - q) + (u_q - q)²)

    as the lower limit, and the upper one in the same way.

    Args:
        both: Episodes that both policies won.
        first: Episodes that only the first one won.
        second: Episodes that only the second one won.
        neither: Episodes that none won.
    """
    n = both + first + second + neither
    p, q = wilson(both + first, n), wilson(both + second, n)
    if n == 0:
        return NOTHING
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess: float = both * neither - first * second
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    phi = excess / math.sqrt(product) if product else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = p.mean - q.mean
    low = difference - reach(p.mean - p.ci95[0], q.ci95[1] - q.mean)
    high = difference + reach(p.ci95[1] - p.mean, q.mean - q.ci95[0])
    return Estimate(difference, (low, high))


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
    fingerprint: str = "",
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
        fingerprint: What else makes the policy the same when ``log`` is gone on with (`policies.specs.fingerprint`).

    Returns:
        The summary and the trajectories in the order of the episodes.

    Raises:
        ConfigError: If ``log`` holds another evaluation, or cannot be written.
        TooManyFailures: If more episodes failed than ``max_failure_rate`` allows, or all of them.
    """
    chosen = {"split": "test"} if options is None else options
    done: dict[str, Trajectory] = {}
    if log is not None:
        _check_same(log, {**_identity(pool, policy, config, seed, chosen), "model_sha256": fingerprint})
        if log.exists():
            done = {t.group: t for t in store.read(log) if _counts(t)}

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
    rollout["rollout.codec"] = config.codec_for(pool.env_id)
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
                if old.get(key, "") == value:
                    continue
                found = f"{key}: {old.get(key)!r}, not {value!r}"
                if key == "model_sha256":
                    found = "other weights: the files of the model are not what they were"
                raise ConfigError(f"{log} holds another evaluation, with {found}: use another --out")
            return
        with store.atomic_file(settings) as file:
            file.write(json.dumps(identity, indent=1).encode())
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{settings} is damaged: use another --out") from error
    except OSError as error:
        raise ConfigError(f"cannot keep an evaluation in {log.parent}: {error}; use another --out") from error
