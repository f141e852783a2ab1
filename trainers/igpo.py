"""IGPO: every turn is rewarded by what it taught the policy about the gold answer, the last one by the outcome.

G rollouts of one question; rollout i has T_i turns. Before each of them the policy scores the gold answer a, of L
tokens, in a wrapper behind the context c (teacher forcing, no gradient); what follows the last turn is not scored:

    ℓ[i,t]  = (1/L) Σ_j log π(a_j | c[i,t], wrapper, a_<j),              t = 0 .. T_i − 1                      (3)
    g[i,t]  = ℓ[i,t] − ℓ[i,t−1]   or   exp ℓ[i,t] − exp ℓ[i,t−1],        t = 1 .. T_i − 1                      (4)
    O[i]    = the episode's return, λ where the environment did not end it                                     (2)
    r̃[i,t]  = (g[i,t] − mean I) / (σ(I) + 1e-6),   r̃[i,T_i] = (O[i] − mean O) / (σ(O) + 1e-6)                  (5)
    A[i,t]  = Σ_{k≥t} γ^{k−t} r̃[i,k]              on every token sampled in turn t                             (6)
    L       = GRPO's clipped loss, + β k3(π_θ ‖ π_ref)                                                         (7)

I holds the gains of all rollouts and turns of the group, O its outcomes; `norm: joint` takes mean and σ over both.

| equation | function                                      |
|----------|-----------------------------------------------|
| ℓ        | `policies.probe`, `HFPolicy`, `Turn.probe`    |
| g        | `information_gains`                           |
| O        | `outcome_rewards`                             |
| r̃        | `normalise`, `credit.group_advantage`         |
| A        | `turn_advantages`, `credit.discounted_returns`|
| L        | `grpo.make_loss`                              |

Source: IGPO (2510.14967v2) and its code of February 2026. Where they differ the paper's is the default, and the preset
`igpo_code` the other: sum over the tokens of a rollout instead of their mean, dual clip, entropy bonus, bounded k3.
Without gains (`outcome`) the step is GRPO's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from agentgym.trainers import grpo
from numpy.typing import ArrayLike

from agentgym.config import build, overlay
from agentgym.credit import Floats, discounted_returns, group_advantage
from agentgym.errors import ConfigError, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.learner import Learner
from agentgym.learner.model import frozen_copy
from agentgym.policies.probe import WRAPPER, check_wrapper, gold_answer
from agentgym.training import Training
from agentgym.types import Group, Status, Trajectory

_FLOOR = 1e-8
"""Added to the variance of gains: those that differ by rounding alone are not blown up to unit scale."""


@dataclass
class Igpo:
    """The turn rewards.

    Attributes:
        gain: log (difference of ℓ), prob (of exp ℓ), or none: no probe, outcomes alone.
        norm: separate (gains and outcomes each among themselves), or joint.
        gamma: γ, discount from one turn to the next.
        ddof: 0 takes σ over n, as IGPO's code; 1 over n − 1, as GRPO here.
        unfinished: λ, the outcome of an episode that the environment did not end: out of turns, of context, or of
            patience with answers that were no action. None for what the environment gave.
        wrapper: The reply that the gold answer is put into, ``{answer}`` in its place; best as the policy writes it.
    """

    gain: Literal["log", "prob", "none"] = "log"
    norm: Literal["separate", "joint"] = "separate"
    gamma: float = 1.0
    ddof: int = 0
    unfinished: float | None = -2.0
    wrapper: str = WRAPPER

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"igpo.gamma is {self.gamma}: it must be between 0 and 1")
        if self.ddof not in (0, 1):
            raise ConfigError(f"igpo.ddof is {self.ddof}: it must be 0 or 1")
        if self.unfinished is not None and not math.isfinite(self.unfinished):
            raise ConfigError(f"igpo.unfinished is {self.unfinished}: it must be a number, or null")
        check_wrapper(self.wrapper)


PRESETS: dict[str, dict[str, Any]] = {
    "igpo": {},
    "igpo_code": {
        "algo": {"aggregation": "seq_mean_token_sum", "dual_clip": 3.0, "entropy_coef": 0.001, "kl_max": 10.0}
    },
    "igpo_v1": {"igpo": {"gain": "prob", "norm": "joint"}},
    "outcome": {"igpo": {"gain": "none", "ddof": 1}},
}


@dataclass
class Config(grpo.Config):
    """Settings of an IGPO run: those of GRPO, whose ``algo`` is the loss, and the turn rewards.

    Attributes:
        preset: igpo (version 2 of the paper), igpo_code (its authors' code), igpo_v1 (the first version's rewards), or
            outcome (no gains: GRPO).
        igpo: The turn rewards.
    """

    preset: str = "igpo"
    igpo: Igpo = field(default_factory=Igpo)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo.center != "group" or self.algo.scale != "group":
            raise ConfigError("algo.center and algo.scale are GRPO's: IGPO normalises by igpo.norm")
        if self.algo.resample and self.igpo.gain != "none":
            raise ConfigError(
                "algo.resample throws away groups with equal outcomes, and IGPO learns from their gains: leave it out"
            )
        if self.decode.lora == "adapter" and self.igpo.gain != "none":
            raise ConfigError(
                "decode.lora is adapter, with which vLLM cannot score the gold answers that IGPO needs: use merged"
            )


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, the preset below the settings given.

    Raises:
        ConfigError: For an unknown preset or key, or settings that exclude each other.
    """
    preset = str(values.get("preset", "igpo"))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return build(Config, overlay(overlay({"algo": {"kl_coef": 0.001}}, PRESETS[preset]), values))


def information_gains(scores: ArrayLike, kind: str = "log") -> Floats:
    """Gains g of the turns but the last.

    Args:
        scores: ℓ before each turn, [T], in nats a token.
        kind: ``log`` or ``prob``.

    Returns:
        g, [T − 1]; NaN or infinite where a score is.
    """
    x = np.asarray(scores, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.diff(np.exp(x) if kind == "prob" else x)


def normalise(
    gains: Sequence[ArrayLike],
    outcomes: ArrayLike,
    groups: Sequence[Hashable],
    norm: str = "separate",
    ddof: int = 0,
) -> list[Floats]:
    """Normalised rewards r̃ of each rollout: of its gains, then of its outcome.

    Args:
        gains: g of each rollout, N arrays of any length.
        outcomes: O of each rollout, [N].
        groups: Question of each rollout, [N].
        norm: ``separate`` or ``joint``.
        ddof: σ over n − ddof.

    Returns:
        N arrays, one longer than the rollout's gains.

    Raises:
        ValueError: A number is not finite, or lengths differ.

    Source: IGPO (2510.14967, eq. 5). σ² of gains (of both, if joint) is raised by 1e-8, as in its code.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in gains]
    flat = np.concatenate([*rows, np.zeros(0)])
    of = [group for group, row in zip(groups, rows, strict=True) for _ in row]
    if norm == "joint":
        pooled = np.concatenate([flat, np.asarray(outcomes, dtype=np.float64)])
        both = group_advantage(pooled, [*of, *groups], ddof=ddof, floor=_FLOOR if len(flat) else 0.0)
        inner, last = np.split(both, [len(flat)])
    else:
        inner = group_advantage(flat, of, ddof=ddof, floor=_FLOOR)
        last = group_advantage(outcomes, groups, ddof=ddof)
    parts = np.split(inner, np.cumsum([len(row) for row in rows])[:-1]) if rows else []
    return [np.append(part, end) for part, end in zip(parts, last, strict=True)]


def turn_advantages(rewards: ArrayLike, turns: int, gamma: float = 1.0) -> Floats:
    """Discounted sums A of the normalised rewards of one rollout.

    Args:
        rewards: r̃, [turns], or the outcome's alone, [1]: the turns before it then have none.
        turns: T.
        gamma: Discount from one turn to the next.

    Returns:
        A of each turn, [T].

    Raises:
        ValueError: There are neither T rewards nor one.

    Source: IGPO (2510.14967, eq. 6).
    """
    r = np.asarray(rewards, dtype=np.float64)
    if len(r) not in (1, turns):
        raise ValueError(f"{len(r)} rewards for {turns} turns: there must be one a turn, or the outcome's alone")
    return discounted_returns(np.concatenate([np.zeros(turns - len(r)), r]), gamma)


def outcome_rewards(cfg: Config, trajectories: Sequence[Trajectory]) -> np.ndarray:
    """O of each trajectory: its return, or λ."""
    out = grpo.returns(cfg.algo, trajectories)
    if cfg.igpo.unfinished is not None:
        out[[t.status is not Status.DONE for t in trajectories]] = cfg.igpo.unfinished
    return out


def assign_advantages(cfg: Config, groups: Sequence[Group]) -> tuple[np.ndarray, dict[str, float]]:
    """Write A[i,t] on every token sampled in turn t of trajectory i.

    A gain that is not finite counts as 0. A trajectory with a turn that was not probed has no gains, and its outcome
    counts for all of its turns.

    Returns:
        Largest |A| of each trajectory, and metrics.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return np.zeros(0), {}
    scores = [[math.nan if u.probe is None else u.probe for u in t.turns] for t in trajectories]
    probed = [cfg.igpo.gain != "none" and all(u.probe is not None for u in t.turns) for t in trajectories]
    raw = [information_gains(s, cfg.igpo.gain) if p else np.zeros(0) for s, p in zip(scores, probed, strict=True)]
    gains = [np.where(np.isfinite(row), row, 0.0) for row in raw]
    names = [t.group for t in trajectories]
    rewards = normalise(gains, outcome_rewards(cfg, trajectories), names, cfg.igpo.norm, cfg.igpo.ddof)
    largest = np.zeros(len(trajectories))
    for i, (trajectory, r) in enumerate(zip(trajectories, rewards, strict=True)):
        advantages = turn_advantages(r, len(trajectory.turns), cfg.igpo.gamma)
        largest[i] = np.abs(advantages).max()
        for segment in trajectory.segments:
            segment.advantages = [0.0] * len(segment)
        for turn, a in zip(trajectory.turns, advantages.tolist(), strict=True):
            segment = trajectory.segments[turn.segment]
            assert segment.advantages is not None
            segment.advantages[turn.start : turn.stop] = [a * m for m in segment.mask[turn.start : turn.stop]]
    metrics = {"igpo/unfinished_frac": float(np.mean([t.status is not Status.DONE for t in trajectories]))}
    if cfg.igpo.gain == "none":
        return largest, metrics
    flat = np.concatenate(gains) if any(map(len, gains)) else np.zeros(1)
    return largest, metrics | {
        "igpo/gain_mean": float(flat.mean()),
        "igpo/gain_std": float(flat.std()),
        "igpo/gain_positive_frac": float((flat > 0).mean()),
        "igpo/gain_sum": float(np.mean([row.sum() for row in gains])),
        "igpo/gained_frac": float(np.mean([len(row) > 0 for row in gains])),
        "igpo/answer_logp": float(np.nanmean([s[-1] for s, p in zip(scores, probed, strict=True) if p] or [0.0])),
        "igpo/fallback": float(probed.count(False)),
        "igpo/not_finite": float(sum(int((~np.isfinite(row)).sum()) for row in raw)),
    }


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("igpo", cfg, out, resume) as job:
        if cfg.igpo.gain != "none":
            gold_answer(job.first_info(), cfg.env.id)
            job.rollout.wrapper = cfg.igpo.wrapper
        reference = frozen_copy(job.model) if cfg.algo.kl_coef else None
        loss = grpo.make_loss(cfg.algo, reference, cfg.rollout.temperature)
        learner = Learner(job.model, cfg.optim)
        for step in job.steps(learner):
            groups, drawn = grpo.collect(cfg, job.rollout, step)
            shown = [t for g in drawn[:4] for t in g.trajectories]
            with job.update([t for g in drawn for t in g.trajectories], shown) as metrics:
                advantages, found = assign_advantages(cfg, groups)
                metrics |= {**found, "group/kept": float(len(groups))}
                metrics |= grpo.update(cfg, learner, groups, advantages, loss)
    return job.results()
