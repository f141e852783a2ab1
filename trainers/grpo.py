"""GRPO and its relatives for multi-turn agents: group-relative advantages, one per trajectory.

G trajectories of one task (same environment seed) get returns R_i. With m = 1 on the tokens the policy sampled:

    A_i      = (R_i − mean_g R) / (std_g R + 1e-6)                       GRPO, DeepSeekMath 2402.03300, eq. 4
    ρ[i,t]   = π_θ(o[i,t]) / π_old(o[i,t])
    ℓ[i,t]   = −min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A) + β · k3(π_θ ‖ π_ref)
    L(θ)     = Σ w[i,t] · ℓ[i,t],   w from the aggregation

| equation                          | function                               |
|-----------------------------------|----------------------------------------|
| A_i                               | `credit.group_advantage`               |
| DAPO's overlong penalty           | `credit.overlong_penalty`              |
| clipped surrogate                 | `learner.losses.clipped_surrogate`     |
| sequence ratio (GSPO)             | `learner.losses.gspo_surrogate`        |
| k3                                | `learner.losses.kl_k3`                 |
| w                                 | `learner.losses.token_weights`         |

The relatives are settings of `Algo`; `PRESETS` names them:

| preset   | centre, scale of A | ratio, clip          | aggregation         | else                                  |
|----------|--------------------|----------------------|---------------------|---------------------------------------|
| grpo     | group, group       | token, .2/.2         | seq_mean_token_mean |                                       |
| dr_grpo  | group, none        | token, .2/.2         | const               |                                       |
| dapo     | group, group       | token, .2/.28        | token_mean          | groups without spread are drawn again |
| gspo     | group, group       | sequence, 3e-4/4e-4  | seq_mean_token_mean |                                       |
| rloo     | loo, none          | token, .2/.2         | token_mean          |                                       |
| lite_ppo | group, batch       | token, .2/.2         | token_mean          |                                       |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agentgym.config import build, overlay
from agentgym.credit import group_advantage, overlong_penalty
from agentgym.errors import ConfigError, TooManyFailures, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.losses import (
    clip_fraction,
    clipped_surrogate,
    gspo_surrogate,
    kl_k3,
    sequence_ratio,
    token_ratio,
    token_weights,
)
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import MicroBatch, pack, rows_of
from agentgym.rollout import Rollout, group_tasks
from agentgym.training import Training, TrainingConfig
from agentgym.types import Group, Trajectory


@dataclass
class Algo:
    """What distinguishes GRPO from its relatives.

    Attributes:
        center: What is subtracted from the return: group, loo (leave one out), batch, none.
        scale: What it is divided by: group, batch (std of raw returns), batch_centered, none.
        ratio: Importance ratio of a token, or of the whole sequence (GSPO).
        clip_low: ε_low.
        clip_high: ε_high.
        dual_clip: Bound c on the loss of negative advantages, or None.
        aggregation: token_mean, seq_mean_token_mean, seq_mean_token_sum, const.
        const_length: Length that ``const`` divides by, in tokens.
        kl_coef: β; above 0 a frozen copy of the starting model is the reference policy.
        kl_max: Most that k3 may be at a token, or None for no bound.
        entropy_coef: Weight of an entropy bonus.
        resample: Draw new groups in place of those whose returns are all equal (DAPO).
        max_resample: Most extra rounds of groups a step.
        overlong_length: L_max of DAPO's overlong penalty in action tokens, 0 for no penalty.
        overlong_buffer: Its buffer c.
    """

    center: Literal["group", "loo", "batch", "none"] = "group"
    scale: Literal["group", "batch", "batch_centered", "none"] = "group"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"] = "seq_mean_token_mean"
    const_length: int = 256
    kl_coef: float = 0.0
    kl_max: float | None = None
    entropy_coef: float = 0.0
    resample: bool = False
    max_resample: int = 4
    overlong_length: int = 0
    overlong_buffer: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or not 0 <= self.clip_high < math.inf:
            raise ConfigError("algo.clip_low must be in [0, 1), algo.clip_high 0 or more")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ConfigError(f"algo.dual_clip is {self.dual_clip}: it must be above 1")
        if self.kl_max is not None and not 0 < self.kl_max < math.inf:
            raise ConfigError(f"algo.kl_max is {self.kl_max}: it must be above 0, or null for no bound")
        if self.const_length < 1:
            raise ConfigError(f"algo.const_length is {self.const_length}: it must be at least 1")
        for name in ("kl_coef", "entropy_coef", "max_resample", "overlong_length"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"algo.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.overlong_length and not 0 < self.overlong_buffer <= self.overlong_length:
            raise ConfigError("algo.overlong_buffer must be above 0 and at most algo.overlong_length")


PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"scale": "none", "aggregation": "const"},
    "dapo": {"clip_high": 0.28, "aggregation": "token_mean", "resample": True},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "rloo": {"center": "loo", "scale": "none", "aggregation": "token_mean"},
    "lite_ppo": {"scale": "batch", "aggregation": "token_mean"},
}


@dataclass
class Config(TrainingConfig):
    """Settings of a GRPO run, beside those that every trainer has.

    Attributes:
        preset: A row of the table above; settings under ``algo`` change it.
        algo: The algorithm.
        groups: Groups (tasks) of a step.
        group_size: Members of a group.
    """

    preset: str = "grpo"
    algo: Algo = field(default_factory=Algo)
    groups: int = 8
    group_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ConfigError(f"groups is {self.groups}: it must be at least 1")
        if self.group_size < 2:
            raise ConfigError(f"group_size is {self.group_size}: a group needs 2 members to compare")
        if self.algo.resample and self.decode.staleness:
            raise ConfigError("algo.resample draws groups of the same step again: that needs decode.staleness=0")
        if self.minibatches > self.groups:
            raise ConfigError(f"minibatches ({self.minibatches}) exceeds groups ({self.groups})")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, the preset below the settings given.

    Raises:
        ConfigError: For an unknown preset or key.
    """
    preset = str(values.get("preset", "grpo"))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return build(Config, overlay({"algo": PRESETS[preset]}, values))


def collect(cfg: Config, rollout: Rollout, step: int) -> tuple[list[Group], list[Group]]:
    """Groups to learn from, and all that were drawn: with ``resample`` those without spread are replaced (DAPO)."""
    kept: list[Group] = []
    drawn: list[Group] = []
    tried = 0
    for _ in range(1 + (cfg.algo.max_resample if cfg.algo.resample else 0)):
        want = cfg.groups - len(kept)
        new = rollout.collect(group_tasks(cfg.seed, step, want, cfg.group_size, first=tried))
        tried += want
        drawn += new
        kept += [g for g in new if not cfg.algo.resample or np.ptp(returns(cfg.algo, g.trajectories)) > 0]
        if len(kept) == cfg.groups:
            break
    if not drawn:
        why = "; ".join(rollout.stats.messages.values())
        raise TooManyFailures(f"all {tried} groups of step {step} failed for reasons outside the policy: {why}")
    return kept, drawn


def returns(algo: Algo, trajectories: Sequence[Trajectory]) -> np.ndarray:
    """R_i of each trajectory, the overlong penalty included."""
    out = np.array([t.episode_return for t in trajectories])
    if algo.overlong_length:
        tokens = np.array([t.action_tokens for t in trajectories])
        out = out + overlong_penalty(tokens, algo.overlong_length, algo.overlong_buffer)
    return out


def assign_advantages(algo: Algo, groups: Sequence[Group]) -> np.ndarray:
    """Write A_i on every sampled token of trajectory i, and return the A_i."""
    trajectories = [t for g in groups for t in g.trajectories]
    names = [t.group for t in trajectories]
    advantages = group_advantage(returns(algo, trajectories), names, algo.center, algo.scale)
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        for segment in trajectory.segments:
            segment.advantages = [float(advantage) * m for m in segment.mask]
    return np.asarray(advantages)


def batches(trajectories: Sequence[Trajectory], cfg: Config) -> list[MicroBatch]:
    """Pack the trajectories of one optimizer step and weigh their tokens over all of them."""
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, i)]
    micro = pack(rows, cfg.optim.token_budget, cfg.optim.share_prefixes)
    seq = torch.cat([m.trajectory for m in micro])
    weights = token_weights(seq, len(trajectories), cfg.algo.aggregation, cfg.algo.const_length)
    for batch, part in zip(micro, weights.split([len(m.targets) for m in micro]), strict=True):
        batch.weights = part
    return micro


def make_loss(algo: Algo, reference: Any | None, temperature: float) -> LossFn:
    """The loss of a micro-batch."""

    def loss_fn(out: TokenOutput, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        a, eps = batch.advantages, (algo.clip_low, algo.clip_high)
        if algo.ratio == "sequence":
            loss = gspo_surrogate(out.logp, batch.old_logp, a, batch.trajectory, *eps)
            ratio = sequence_ratio(out.logp.detach(), batch.old_logp, batch.trajectory)
        else:
            loss = clipped_surrogate(out.logp, batch.old_logp, a, *eps, algo.dual_clip)
            ratio = token_ratio(out.logp.detach(), batch.old_logp)
        metrics = {
            "policy/entropy": out.entropy,
            "policy/clip_frac": clip_fraction(ratio, a, *eps, algo.dual_clip).expand_as(a),
            "policy/mismatch_kl": kl_k3(batch.old_logp, out.logp.detach()),
        }
        if reference is not None:
            with torch.no_grad():
                ref_logp = token_logprobs(reference, batch, temperature).logp
            kl = kl_k3(out.logp, ref_logp, algo.kl_max)
            loss = loss + algo.kl_coef * kl
            metrics["policy/kl_ref"] = kl
        return (batch.weights * (loss - algo.entropy_coef * out.entropy)).sum(), metrics

    return loss_fn


def update(
    cfg: Config, learner: Learner, groups: Sequence[Group], advantages: np.ndarray, loss: LossFn
) -> dict[str, float]:
    """All optimizer steps of one training step; the metrics are those of the first, where the policy is π_old."""
    trajectories = [t for g in groups for t in g.trajectories]
    metrics: dict[str, float] = {}
    for _ in range(cfg.updates):
        for part in np.array_split(np.arange(len(trajectories)), cfg.minibatches):
            if np.any(advantages[part] != 0) or (len(part) and (cfg.algo.kl_coef or cfg.algo.entropy_coef)):
                chosen = [trajectories[i] for i in part]
                new = learner.step(batches(chosen, cfg), loss, cfg.rollout.temperature)
                metrics = metrics or new
                metrics["policy/clip_frac"] = max(metrics["policy/clip_frac"], new["policy/clip_frac"])
    return metrics


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("grpo", cfg, out, resume) as job:
        reference = frozen_copy(job.model) if cfg.algo.kl_coef else None
        loss = make_loss(cfg.algo, reference, cfg.rollout.temperature)
        learner = Learner(job.model, cfg.optim)
        for step in job.steps(learner):
            groups, drawn = collect(cfg, job.rollout, step)
            shown = [t for g in drawn[:4] for t in g.trajectories]
            with job.update([t for g in drawn for t in g.trajectories], shown) as metrics:
                advantages = assign_advantages(cfg.algo, groups)
                metrics["group/kept"] = float(len(groups))
                metrics |= update(cfg, learner, groups, advantages, loss)
    return job.results()
