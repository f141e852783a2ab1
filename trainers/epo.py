"""EPO: an entropy bonus over turns, and a penalty on entropies that leave a corridor around those of past steps.

Over GRPO or over PPO (`base`). H[j,t,i] is the entropy at token i of turn t of trajectory j, in nats; k = 0..K−1 is the
training step, H̄_m the mean of H over all sampled tokens of step m:

    L        = L_base − λ (L_H − β_k L_smooth)
    L_H      = Σ u H,      L_smooth = Σ u α P
    u        = 1 / (trajectories · turns of j · tokens of t)      mean over trajectories, over turns, over tokens
    P        = [κ_l h − H]₊ + [H − κ_r h]₊                        `penalty: hinge`
    P        = 1 where H < κ_l h or H > κ_r h, else 0             `penalty: indicator`; its gradient is exactly zero
    h        = (H̄_0 + … + H̄_{k−1}) / k                           a constant; without a past (k = 0) P = 0
    β_k      = 1 + exp(−γ k / k_mid),   k_mid = ⌊K/2⌋             `schedule: paper`

| equation | function                                 |
|----------|------------------------------------------|
| L_base   | `grpo.make_loss`, `ppo.make_loss`        |
| u        | `entropy_weights`, `losses.turn_weights` |
| P        | `corridor_penalty`                       |
| H̄        | `mean_entropies`                         |
| h        | `reference`                              |
| β_k      | `phase_weight`                           |
| L        | `make_loss`                              |

| preset        | differs from the above by                                                                         |
|---------------|---------------------------------------------------------------------------------------------------|
| epo           |                                                                                                   |
| epo_base      | no L_smooth                                                                                       |
| epo_no_dw     | β = 1 throughout                                                                                  |
| epo_decay     | no L_smooth; λ falls from turn to turn: λ 2(T_j−t)/(T_j+1), t from 0, of mean λ over the T_j turns |
| entropy_bonus | no L_smooth, u = 1 / tokens: the plain entropy bonus                                              |
| released      | the authors' code: indicator, h per turn number with the present step in it, u = 1 / tokens,      |
|               | its β (1 down to 0 over 150 steps), only in turns from 25 on                                      |

The paper gives no formula for EPO-Decay; ours is a choice. Source: EPO (2509.22576 v2), equations 2, 4 and 5; the
authors' code where it says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from agentgym.trainers import grpo, ppo
from torch import Tensor

from agentgym import seeding
from agentgym.config import build, overlay
from agentgym.errors import ConfigError, TooManyFailures, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.critic import Critic
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.losses import turn_weights
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import MicroBatch, pack, rows_of
from agentgym.rollout import Rollout, group_tasks
from agentgym.training import Training
from agentgym.types import Group, Trajectory

Seen = list[tuple[Tensor, Tensor]]
"""Turn numbers and entropies of the tokens of micro-batches."""


@dataclass
class Epo:
    """The entropy terms.

    Attributes:
        coef: λ.
        alpha: α.
        kappa_low: κ_l.
        kappa_high: κ_r.
        penalty: hinge (v2 of the paper) or indicator (v1, and the released code).
        reference: What h is the mean of: all tokens (scalar), or those of the same turn number (turn).
        current: Whether h holds the current step too; costs one more forward.
        window: Steps that h is the mean of, or None for all.
        aggregation: u as above (traj_turn_token), or 1 / tokens (token).
        schedule: β as above (paper), the released code's (code), or 1 (constant).
        gamma: γ of the paper's β.
        horizon: K; 0 for the run's ``steps``.
        first_turn: P is 0 in the turns before this one.
        turn_decay: λ falls linearly from turn to turn, with the same mean.
    """

    coef: float = 1e-3
    alpha: float = 0.1
    kappa_low: float = 0.0
    kappa_high: float = 2.0
    penalty: Literal["hinge", "indicator"] = "hinge"
    reference: Literal["scalar", "turn"] = "scalar"
    current: bool = False
    window: int | None = None
    aggregation: Literal["traj_turn_token", "token"] = "traj_turn_token"
    schedule: Literal["paper", "code", "constant"] = "paper"
    gamma: float = 3.0
    horizon: int = 0
    first_turn: int = 0
    turn_decay: bool = False

    def __post_init__(self) -> None:
        for name in ("coef", "alpha", "kappa_low", "gamma", "horizon", "first_turn"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"epo.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.kappa_low > self.kappa_high:
            raise ConfigError(
                f"epo.kappa_low ({self.kappa_low}) is above epo.kappa_high ({self.kappa_high}): no entropy lies between"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"epo.window is {self.window}: it must be at least 1, or null for all steps")


PRESETS: dict[str, dict[str, Any]] = {
    "epo": {},
    "epo_base": {"alpha": 0.0},
    "epo_no_dw": {"schedule": "constant"},
    "epo_decay": {"alpha": 0.0, "turn_decay": True},
    "entropy_bonus": {"alpha": 0.0, "aggregation": "token"},
    "released": {
        "penalty": "indicator",
        "reference": "turn",
        "current": True,
        "aggregation": "token",
        "schedule": "code",
        "horizon": 150,
        "first_turn": 25,
    },
}


@dataclass
class GrpoConfig(grpo.Config):
    """Settings of EPO over GRPO.

    Attributes:
        base: ``grpo``.
        preset: A row of the table above; settings under ``epo`` change it. Relatives of GRPO are settings of ``algo``.
        epo: The entropy terms.
    """

    base: Literal["grpo"] = "grpo"
    preset: str = "epo"
    epo: Epo = field(default_factory=Epo)

    def __post_init__(self) -> None:
        super().__post_init__()
        _settle(self)


@dataclass
class PpoConfig(ppo.Config):
    """Settings of EPO over PPO.

    Attributes:
        base: ``ppo``.
        preset: A row of the table above; settings under ``epo`` change it.
        epo: The entropy terms.
    """

    base: Literal["ppo"] = "ppo"
    preset: str = "epo"
    epo: Epo = field(default_factory=Epo)

    def __post_init__(self) -> None:
        super().__post_init__()
        _settle(self)


Config = GrpoConfig | PpoConfig


def _settle(cfg: Config) -> None:
    """Check what concerns more than one section, and write K down: it must not change when a run is resumed."""
    if cfg.algo.entropy_coef:
        raise ConfigError(f"algo.entropy_coef is {cfg.algo.entropy_coef}: EPO's own bonus is epo.coef; leave this at 0")
    if cfg.epo.alpha and cfg.epo.first_turn >= cfg.rollout.max_turns:
        raise ConfigError(
            f"epo.first_turn is {cfg.epo.first_turn}, but rollout.max_turns is {cfg.rollout.max_turns}: no turn would "
            "ever be penalised"
        )
    if cfg.epo.schedule != "constant":
        cfg.epo.horizon = cfg.epo.horizon or cfg.steps


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, the preset below the settings given.

    Raises:
        ConfigError: For an unknown base, preset or key.
    """
    kinds: dict[str, type[Config]] = {"grpo": GrpoConfig, "ppo": PpoConfig}
    base, preset = str(values.get("base", "grpo")), str(values.get("preset", "epo"))
    if base not in kinds:
        raise unknown("base", base, kinds)
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return build(kinds[base], overlay({"epo": PRESETS[preset]}, values))


def entropy_weights(epo: Epo, batch: MicroBatch) -> Tensor:
    """The weight u of each token of a micro-batch ``[N]``; over the whole batch they sum to 1."""
    seq, turn = batch.trajectory, batch.turns
    if epo.aggregation == "token":
        u = torch.full(seq.shape, 1.0 / max(batch.batch_tokens, 1), device=seq.device)
    else:
        u = turn_weights(seq, turn, batch.batch_trajectories)
    if epo.turn_decay:
        turns = seq.new_zeros(batch.batch_trajectories).scatter_reduce(0, seq, turn + 1, "amax")[seq]
        u = u * 2 * (turns - turn) / (turns + 1)
    return u


def corridor(epo: Epo, h: Tensor) -> tuple[Tensor, Tensor]:
    """Its two ends κ_l h and κ_r h, of any shape, in nats."""
    return epo.kappa_low * h, epo.kappa_high * h if epo.kappa_high < math.inf else torch.full_like(h, math.inf)


def corridor_penalty(epo: Epo, entropy: Tensor, h: Tensor) -> Tensor:
    """P of each token ``[N]``, from H with gradient and h, both ``[N]`` in nats; 0 where h is not known (NaN)."""
    low, high = corridor(epo, h)
    if epo.penalty == "hinge":
        p = (low - entropy).relu() + (entropy - high).relu()
    else:
        p = ((entropy < low) | (entropy > high)).to(entropy.dtype)
    return torch.where(h.isnan(), 0.0, p)


def mean_entropies(seen: Seen, tokens: int | None = None) -> list[float]:
    """H̄ of a step over its first ``tokens`` tokens (all of them by default), then over those of turn 0, 1, …"""
    turn, entropy = (torch.cat([part[k] for part in seen])[:tokens].cpu() for k in range(2))
    sums = torch.bincount(turn, entropy.double())
    return [float(entropy.double().mean()), *(sums / torch.bincount(turn)).tolist()]


def reference(epo: Epo, history: Sequence[Sequence[float]], turns: int) -> np.ndarray:
    """The reference entropy h of each turn.

    Args:
        epo: Settings.
        history: What `mean_entropies` said of the steps that count, oldest first.
        turns: Most turns of an episode.

    Returns:
        h ``[turns]`` in nats, NaN where there is none. A turn is compared with turns of its own number; a step in which
        no episode got that far says nothing about it.
    """
    rows = history[-epo.window :] if epo.window else history
    if epo.reference == "scalar":
        return np.full(turns, np.mean([row[0] for row in rows]) if rows else np.nan)
    known = [[row[1 + t] for row in rows if len(row) > 1 + t] for t in range(turns)]
    return np.array([np.mean(values) if values else np.nan for values in known])


def phase_weight(epo: Epo, step: int) -> float:
    """β at training step k: 1, the paper's (2 down to 1), or the released code's (1 down to 0, with a jump)."""
    if epo.schedule == "constant":
        return 1.0
    middle = max(1, epo.horizon // 2)
    if epo.schedule == "paper":
        return 1.0 + math.exp(-epo.gamma * step / middle)
    if step <= middle:
        return 1.0 - 0.2 * (1.0 - math.exp(-2.0 * step / middle))
    return 0.8 * math.exp(-3.0 * (step - middle) / middle)


def make_loss(epo: Epo, base: LossFn, h: np.ndarray, beta: float, seen: Seen) -> LossFn:
    """The loss of a micro-batch.

    Args:
        epo: Settings.
        base: Loss of the base algorithm.
        h: From `reference`.
        beta: From `phase_weight`.
        seen: Gets the turn numbers and entropies of every micro-batch.
    """

    def loss_fn(out: TokenOutput, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = base(out, batch)
        seen.append((batch.turns, out.entropy.detach()))
        if not epo.coef:
            return loss, metrics
        u, target = entropy_weights(epo, batch), torch.from_numpy(h).to(out.entropy)[batch.turns]
        smooth = epo.alpha * corridor_penalty(epo, out.entropy, target) * (batch.turns >= epo.first_turn)
        metrics["epo/entropy"] = u * out.entropy * batch.batch_tokens  # the mean over tokens is then L_H
        metrics["epo/smooth"] = u * smooth * batch.batch_tokens
        if not np.isnan(h).all():
            low, high = corridor(epo, target)
            metrics["epo/inside_frac"] = ((out.entropy >= low) & (out.entropy <= high))[~target.isnan()].float()
        return loss - epo.coef * (u * (out.entropy - beta * smooth)).sum(), metrics

    return loss_fn


@torch.no_grad()
def measure(cfg: Config, model: Any, trajectories: Sequence[Trajectory]) -> Seen:
    """Turn numbers and entropies of all sampled tokens, as the model stands."""
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, i)]
    device = next(model.parameters()).device
    micro = [b.to(device) for b in pack(rows, cfg.optim.token_budget, cfg.optim.share_prefixes)]
    return [(b.turns, token_logprobs(model, b, cfg.rollout.temperature).entropy) for b in micro]


def collect(cfg: Config, rollout: Rollout, step: int) -> tuple[list[Group], list[Group]]:
    """Groups to learn from, and all that were drawn, as the base algorithm draws them."""
    if isinstance(cfg, GrpoConfig):
        return grpo.collect(cfg, rollout, step)
    groups = rollout.collect(group_tasks(cfg.seed, step, cfg.episodes, 1))
    if len(groups) < cfg.minibatches:
        why = "; ".join(rollout.stats.messages.values())
        raise TooManyFailures(f"only {len(groups)} episodes of step {step} did not fail: {why}")
    return groups, groups


def learn(
    cfg: Config, job: Training, learner: Learner, critic: Critic | None, start: Any | None, groups: Sequence[Group]
) -> dict[str, float]:
    """Credit and all optimizer steps of a training step; the history of entropies grows by this step's.

    Those are the entropies of the first pass over the step's tokens, which costs nothing: the entropies of the policy
    that sampled, if the pass is one mini-batch. With ``epo.current`` they are measured before it.
    """
    epo, history = cfg.epo, job.state["entropies"]
    trajectories = [t for g in groups for t in g.trajectories]
    seen: Seen = []
    now = [mean_entropies(measure(cfg, job.model, trajectories))] if epo.current and trajectories else []
    h, beta = reference(epo, [*history, *now], cfg.rollout.max_turns), phase_weight(epo, job.step)
    if isinstance(cfg, GrpoConfig):
        base = grpo.make_loss(cfg.algo, start, cfg.rollout.temperature)
        advantages = grpo.assign_advantages(cfg.algo, groups)
        signal = np.ones_like(advantages) if epo.coef else advantages  # the bonus teaches where advantages do not
        metrics = grpo.update(cfg, learner, groups, signal, make_loss(epo, base, h, beta, seen))
        metrics["group/kept"] = float(len(groups))
    else:
        assert critic is not None
        credit, metrics = ppo.assign_credit(cfg, critic, start, trajectories)
        loss = make_loss(epo, ppo.make_loss(cfg, critic.head), h, beta, seen)
        metrics |= ppo.update(cfg, learner, trajectories, credit, loss, job.step)
    tokens = sum(t.action_tokens for t in trajectories)
    history += now or ([mean_entropies(seen, tokens)] if seen else [])
    known = {} if np.isnan(h).all() else {"epo/reference": float(np.nanmean(h))}
    return {**metrics, "epo/beta": beta, **known}


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("epo", cfg, out, resume) as job:
        critic = Critic(job.model, cfg.critic, seeding.init_seed(cfg.seed)) if isinstance(cfg, PpoConfig) else None
        start = ((critic and critic.start) or frozen_copy(job.model)) if cfg.algo.kl_coef else None
        head = (critic.head, critic.config.lr) if critic else ()
        learner = Learner(job.model, cfg.optim, *head)
        job.state["entropies"] = []
        for step in job.steps(learner):
            groups, drawn = collect(cfg, job.rollout, step)
            with job.update([t for g in drawn for t in g.trajectories]) as metrics:
                metrics |= learn(cfg, job, learner, critic, start, groups)
    return job.results()
