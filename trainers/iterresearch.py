"""IterResearch with EAPO: every round is a training sample, and rounds far from the end of a success earn less.

A round starts from a workspace s_t = (question, report, last action, its response), which is rebuilt each time, and is
a decision d_t = (thought, new report, action) of |d_t| sampled tokens. G trajectories of one question, trajectory i of
T_i rounds and with the judged outcome R_i:

    r[i,t] = γ^(T_i − t) R_i                                             t = 1..T_i          eq. 5
    Â[i,t] = (r[i,t] − μ) / (σ + 1e-6)         μ, σ over all Σ_i T_i rounds of the question
    C_train: ⌊|C| / DP⌋ · DP of the step's |C| rounds, drawn uniformly                       eq. 6
    ρ[i,t] = exp( 1/|d[i,t]| Σ_k (log π_θ − log π_old)(d[i,t,k]) )                           GSPO, of one round
    L      = − 1/|C_train| Σ min(ρ Â, clip(ρ, 1−ε_low, 1+ε_high) Â)                          eq. 7

| equation | function                                      |
|----------|-----------------------------------------------|
| s_t      | `context.Workspace`                           |
| r        | `round_rewards`                               |
| Â        | `advantages`                                  |
| C_train  | `downsample`                                  |
| ρ, clip  | `learner.losses.gspo_surrogate`               |
| 1/|C|    | `batches` (weight of a token: 1/(|C| |d|))    |

| preset | γ     |                                              |
|--------|-------|----------------------------------------------|
| eapo   | 0.995 | successes in fewer rounds are worth more     |
| gspo   | 1     | the baseline: every round of a success earns 1 |

Source: IterResearch (2511.07327), whose training code is not public. A reply that cannot be read ends its episode
without success. What the paper leaves open, and how it is filled here: docs/algorithms/iterresearch.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from agentgym.trainers import grpo

from agentgym import seeding
from agentgym.config import build, overlay
from agentgym.errors import ConfigError, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.losses import token_weights
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import MicroBatch, TrainRow, pack, rows_of
from agentgym.rollout import RolloutConfig
from agentgym.training import Training
from agentgym.types import Group, Status, Trajectory


@dataclass
class Eapo:
    """Rewards and advantages.

    Attributes:
        gamma: γ, from one round to the one before.
        deviation: σ of the ``population`` (n), or of a ``sample`` (n − 1).
        sigma_floor: Least σ. Where all trajectories of a question succeed, σ is only what γ makes of their rounds, and
            dividing by it blows the discount up to a signal of size 1; 0 for no floor.
        dp: DP, of which the number of rounds that a step learns from is made a multiple.
    """

    gamma: float = 0.995
    deviation: Literal["population", "sample"] = "population"
    sigma_floor: float = 0.0
    dp: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"eapo.gamma is {self.gamma}: it must be above 0 and at most 1")
        if not 0 <= self.sigma_floor < math.inf:
            raise ConfigError(f"eapo.sigma_floor is {self.sigma_floor}: it must be 0 or more")
        if self.dp < 1:
            raise ConfigError(f"eapo.dp is {self.dp}: it must be at least 1")


PRESETS: dict[str, dict[str, Any]] = {"eapo": {}, "gspo": {"gamma": 1.0}}
_REFUSED = {
    "center": "EAPO's baseline is the mean over the rounds of a question",
    "scale": "EAPO divides by the deviation over the rounds of a question: see eapo.deviation and eapo.sigma_floor",
    "aggregation": "EAPO weighs every round alike",
    "overlong_length": "EAPO's reward of a round is that of the outcome",
}


@dataclass
class Config(grpo.Config):
    """Settings of a run: those of GRPO, whose ``algo`` is the loss, and what EAPO changes.

    Attributes:
        preset: eapo, or gspo, the same with γ = 1.
        eapo: Rewards and advantages.
    """

    preset: str = "eapo"
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(context="workspace", parse_limit=1))
    algo: grpo.Algo = field(default_factory=lambda: grpo.Algo(ratio="sequence", clip_low=3e-4, clip_high=4e-4))
    eapo: Eapo = field(default_factory=Eapo)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.context != "workspace":
            raise ConfigError(
                f"rollout.context={self.rollout.context} shows a round what earlier rounds wrote: a trajectory is then "
                "one growing sample, and EAPO takes each round as a sample of its own; use rollout.context=workspace, "
                "or train with grpo"
            )
        plain = grpo.Algo()
        for name, why in _REFUSED.items():
            if getattr(self.algo, name) != getattr(plain, name):
                raise ConfigError(f"algo.{name} cannot be changed here: {why}")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, the preset below the settings given.

    Raises:
        ConfigError: For an unknown preset or key, or settings that exclude each other.
    """
    preset = str(values.get("preset", "eapo"))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    gspo = grpo.PRESETS["gspo"]
    rollout = {"context": "workspace", "parse_limit": 1}
    return build(Config, overlay({"rollout": rollout, "algo": gspo, "eapo": PRESETS[preset]}, values))


def round_rewards(rounds: int, outcome: float, gamma: float) -> np.ndarray:
    """r_t of t = 1..T ``[T]``: the last round gets the outcome R itself."""
    return outcome * gamma ** np.arange(rounds - 1, -1, -1.0)


def advantages(
    rewards: Sequence[np.ndarray],
    questions: Sequence[str],
    deviation: Literal["population", "sample"] = "population",
    sigma_floor: float = 0.0,
    eps: float = 1e-6,
) -> list[np.ndarray]:
    """Â of every round, compared with all rounds of all trajectories of the same question.

    Args:
        rewards: r of each trajectory ``[T_i]``.
        questions: The question of each trajectory.
        deviation: ``population`` or ``sample``.
        sigma_floor: Least σ.
        eps: Added to σ.

    Returns:
        One array ``[T_i]`` a trajectory.
    """
    out = [np.zeros(len(r)) for r in rewards]
    for question in dict.fromkeys(questions):
        members = [i for i, name in enumerate(questions) if name == question]
        r = np.concatenate([rewards[i] for i in members])
        if np.ptp(r) > 0:
            sigma = max(float(r.std(ddof=int(deviation == "sample"))), sigma_floor)
            for i in members:
                out[i] = (rewards[i] - r.mean()) / (sigma + eps)
    return out


def downsample(rounds: int, dp: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """C_train: which of ``rounds`` samples are kept, a multiple of ``dp``, and the weight of each.

    Too few for a single multiple are all kept and padded with repetitions of weight 0, which teach nothing.

    Returns:
        Indices in ascending order (repetitions last), and weights of 1 or 0.
    """
    if rounds >= dp:
        kept = rounds // dp * dp
        return np.sort(rng.permutation(rounds)[:kept]), np.ones(kept)
    return np.arange(dp) % rounds, (np.arange(dp) < rounds).astype(float)


def outcome(trajectory: Trajectory) -> float:
    """R of a trajectory: what it was paid; nothing if it ended with a reply that could not be read."""
    return 0.0 if trajectory.status is Status.PARSE_LIMIT else trajectory.episode_return


def assign_advantages(cfg: Eapo, groups: Sequence[Group]) -> dict[str, float]:
    """Write Â[i,t] on every sampled token of round t of trajectory i; returns metrics.

    A reply that could not be read earns 0, also where the trajectory goes on behind it (``rollout.parse_limit`` > 1).
    """
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return {}
    read = [np.array([u.parse_error is None for u in t.turns]) for t in trajectories]
    rewards = [
        round_rewards(len(t.turns), outcome(t), cfg.gamma) * ok for t, ok in zip(trajectories, read, strict=True)
    ]
    found = advantages(rewards, [t.group for t in trajectories], cfg.deviation, cfg.sigma_floor)
    for trajectory, a in zip(trajectories, found, strict=True):
        for segment in trajectory.segments:
            segment.advantages = [0.0] * len(segment)
        for turn, value in zip(trajectory.turns, a.tolist(), strict=True):
            written = trajectory.segments[turn.segment].advantages
            assert written is not None
            written[turn.start : turn.stop] = [value] * (turn.stop - turn.start)
    won = [len(t.turns) for t in trajectories if outcome(t) > 0]
    return {
        "eapo/rounds": float(sum(map(len, rewards))),
        "eapo/advantage_abs": float(np.abs(np.concatenate(found)).mean()),
        "eapo/format_failures": float(sum((~ok).sum() for ok in read)),
        "eapo/context_full": float(sum(t.status is Status.CONTEXT_FULL for t in trajectories)),
        **({"eapo/rounds_to_success": float(np.mean(won))} if won else {}),
    }


def samples_of(groups: Sequence[Group]) -> list[TrainRow]:
    """C: a row for every round, its prompt and its decision, those of a question side by side."""
    trajectories = (t for g in groups for t in g.trajectories)
    return [row for i, t in enumerate(trajectories) for row in rows_of(t, i, per_turn=True)]


def batches(rows: Sequence[TrainRow], weights: np.ndarray, cfg: Config) -> list[MicroBatch]:
    """Pack the rounds of one optimizer step; each weighs 1/|C|, spread over its tokens, those of weight 0 nothing."""
    numbered = [replace(row, trajectory=i) for i, row in enumerate(rows)]
    micro = pack(numbered, cfg.optim.token_budget, cfg.optim.share_prefixes)
    sample = torch.cat([m.trajectory for m in micro])
    real = torch.from_numpy(weights).float()
    per_token = token_weights(sample, len(rows), "seq_mean_token_mean") * real[sample] * (len(rows) / real.sum())
    for batch, part in zip(micro, per_token.split([len(m.targets) for m in micro]), strict=True):
        batch.weights = part
    return micro


def update(cfg: Config, learner: Learner, groups: Sequence[Group], loss: LossFn, step: int) -> dict[str, float]:
    """All optimizer steps of one training step; the metrics are those of the first, where the policy is π_old."""
    corpus = samples_of(groups)
    if not corpus:
        return {}
    chosen, weights = downsample(len(corpus), cfg.eapo.dp, seeding.data_rng(cfg.seed, step))
    rows = [corpus[i] for i in chosen]
    metrics: dict[str, float] = {}
    for _ in range(cfg.updates):
        for part in np.array_split(np.arange(len(rows)), cfg.minibatches):
            signal = any(weights[i] and any(rows[i].advantages) for i in part)
            if signal or (weights[part].any() and (cfg.algo.kl_coef or cfg.algo.entropy_coef)):
                micro = batches([rows[i] for i in part], weights[part], cfg)
                new = learner.step(micro, loss, cfg.rollout.temperature)
                metrics = metrics or new
                metrics["policy/clip_frac"] = max(metrics["policy/clip_frac"], new["policy/clip_frac"])
    return {**metrics, "eapo/dropped_frac": 1 - len(set(chosen.tolist())) / len(corpus)}


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("iterresearch", cfg, out, resume) as job:
        check_rounds(cfg, job.first_info())
        reference = frozen_copy(job.model) if cfg.algo.kl_coef else None
        loss = grpo.make_loss(cfg.algo, reference, cfg.rollout.temperature)
        learner = Learner(job.model, cfg.optim)
        for step in job.steps(learner):
            groups, drawn = grpo.collect(cfg, job.rollout, step)
            shown = [t for g in drawn[:4] for t in g.trajectories]
            with job.update([t for g in drawn for t in g.trajectories], shown) as metrics:
                metrics |= {**assign_advantages(cfg.eapo, groups), "group/kept": float(len(groups))}
                metrics |= update(cfg, learner, groups, loss, step)
    return job.results()


def check_rounds(cfg: Config, info: Mapping[str, Any]) -> None:
    """Refuse an environment that ends an episode before the round that is announced as the last.

    Raises:
        ConfigError: If ``info["max_rounds"]`` is below ``rollout.max_turns``.
    """
    rounds, limit = info.get("max_rounds"), cfg.rollout.max_turns
    if isinstance(rounds, int) and rounds < limit:
        raise ConfigError(
            f"rollout.max_turns is {limit}, but the environment ends after {rounds} rounds: its last round would not "
            f"be announced as the last; use rollout.max_turns={rounds}, or raise env.kwargs.max_rounds"
        )
