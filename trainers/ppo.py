"""PPO for multi-turn agents: a critic values every token, GAE runs over turns and the tokens inside them.

The policy sampled tokens w[t,j], j = 1..n_t, in turn t; the environment gave r_t after it. V[t,j] is the critic's value
of the state before token j, T the number of turns:

    δ[t,n_t] = r_t + γ V[t+1,1] − V[t,j],    A = δ + γ λ A[t+1,1]        at the last token of a turn
    δ[t,j]   = γ_w V[t,j+1] − V[t,j],        A = δ + γ_w λ_w A[t,j+1]    at the tokens before it
    y        = A + V                                                     target of the critic
    Â        = (A − mean A) / (std A + 1e-6)                             over all sampled tokens of the step
    ρ        = π_θ(w) / π_old(w)
    L_π      = Σ w · −min(ρ Â, clip(ρ, 1−ε_low, 1+ε_high) Â)
    L_V      = Σ w · ½ max((V_θ − y)², (clip(V_θ, V ± c) − y)²)
    L        = L_π + c_V L_V − c_H H

An episode that runs out of turns is over: nothing is expected after it (V[T+1] = 0). With β above 0, β (log π_old −
log π_ref) is taken off the reward of every token (KL in the reward).

| equation  | function                           |
|-----------|------------------------------------|
| A, y      | `credit.turn_gae`                  |
| Â         | `credit.whiten`                    |
| V         | `learner.critic.Critic`            |
| L_π       | `learner.losses.clipped_surrogate` |
| L_V       | `learner.losses.clipped_value_loss`|
| w         | `learner.losses.token_weights`     |

Source: PPO (1707.06347), GAE (1506.02438). γ = λ = γ_w = λ_w = 1, ε = 0.2 and c = 0.5 are verl's for language models;
`gamma_token` below 1 discounts long answers more than short ones (POAD, 2405.15821, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agentgym import seeding
from agentgym.config import build
from agentgym.credit import turn_gae, whiten
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.evaluate import Evaluation
from agentgym.learner.critic import Critic, CriticConfig
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.losses import (
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    kl_k3,
    token_ratio,
    token_weights,
)
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import MicroBatch, pack, rows_of
from agentgym.rollout import group_tasks
from agentgym.training import Training, TrainingConfig
from agentgym.types import Trajectory


@dataclass
class Algo:
    """PPO's own settings.

    Attributes:
        gamma: γ, discount from one turn to the next.
        lam: λ, trace decay from one turn to the next.
        gamma_token: γ_w, discount between the tokens of a turn.
        lam_token: λ_w, trace decay between the tokens of a turn.
        clip_low: ε_low.
        clip_high: ε_high.
        dual_clip: Bound on the loss of negative advantages, or None.
        aggregation: token_mean, seq_mean_token_mean, seq_mean_token_sum.
        entropy_coef: c_H.
        kl_coef: β; above 0 a frozen copy of the starting model is the reference policy.
    """

    gamma: float = 1.0
    lam: float = 1.0
    gamma_token: float = 1.0
    lam_token: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"] = "token_mean"
    entropy_coef: float = 0.0
    kl_coef: float = 0.0

    def __post_init__(self) -> None:
        for name in ("gamma", "lam", "gamma_token", "lam_token"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"algo.{name} is {getattr(self, name)}: it must be between 0 and 1")
        if not 0 <= self.clip_low < 1 or not 0 <= self.clip_high < math.inf:
            raise ConfigError("algo.clip_low must be in [0, 1), algo.clip_high 0 or more")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ConfigError(f"algo.dual_clip is {self.dual_clip}: it must be above 1")
        for name in ("entropy_coef", "kl_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"algo.{name} is {getattr(self, name)}: it must be 0 or more")


@dataclass
class Config(TrainingConfig):
    """Settings of a PPO run, beside those that every trainer has.

    Attributes:
        critic: The critic.
        algo: The algorithm.
        episodes: Episodes of a step, each of a task of its own.
    """

    critic: CriticConfig = field(default_factory=CriticConfig)
    algo: Algo = field(default_factory=Algo)
    episodes: int = 64
    minibatches: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatches > self.episodes:
            raise ConfigError(f"minibatches ({self.minibatches}) exceeds episodes ({self.episodes})")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config.

    Raises:
        ConfigError: For an unknown key.
    """
    return build(Config, values)


@dataclass
class Credit:
    """What is known of the n sampled tokens of one trajectory, in the order they were sampled.

    Attributes:
        advantages: Â, ``[n]``.
        old_values: V, ``[n]``.
        returns: y, ``[n]``.
        features: What a frozen backbone gives the critic to read, ``[n, d]``, or None.
    """

    advantages: np.ndarray
    old_values: np.ndarray
    returns: np.ndarray
    features: torch.Tensor | None


def lay_out(trajectories: Sequence[Trajectory], cfg: TrainingConfig) -> list[MicroBatch]:
    """Pack trajectories; their sampled tokens keep their order from the first micro-batch to the last."""
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, i)]
    return pack(rows, cfg.optim.token_budget, cfg.optim.share_prefixes)


def token_rewards(trajectory: Trajectory) -> np.ndarray:
    """Reward of each sampled token ``[n]``: that of a turn on its last token."""
    rewards = np.zeros(trajectory.action_tokens)
    lengths = [turn.stop - turn.start for turn in trajectory.turns]
    rewards[np.cumsum(lengths) - 1] = [turn.reward for turn in trajectory.turns]
    return rewards


@torch.no_grad()
def kl_in_reward(batches: Sequence[MicroBatch], reference: Any, temperature: float) -> np.ndarray:
    """How much likelier each sampled token was than under the reference: log π_old − log π_ref, ``[N]``."""
    device = next(reference.parameters()).device
    kl = [b.old_logp - token_logprobs(reference, b.to(device), temperature).logp.cpu() for b in batches]
    return torch.cat(kl).double().numpy()


def assign_credit(
    cfg: Config, critic: Critic, reference: Any | None, trajectories: Sequence[Trajectory]
) -> tuple[list[Credit], dict[str, float]]:
    """Value every sampled token, run GAE, whiten over the step; Â is also written into the segments."""
    algo, batches = cfg.algo, lay_out(trajectories, cfg)
    values, features = critic.evaluate(batches)
    ends = np.cumsum([t.action_tokens for t in trajectories])[:-1]
    penalty = (
        algo.kl_coef * kl_in_reward(batches, reference, cfg.rollout.temperature) if reference else np.zeros_like(values)
    )
    found = []
    for t, v, p in zip(trajectories, np.split(values, ends), np.split(penalty, ends), strict=True):
        lengths = [turn.stop - turn.start for turn in t.turns]
        discounts = (algo.gamma, algo.lam, algo.gamma_token, algo.lam_token)
        found.append(turn_gae(token_rewards(t) - p, v, lengths, *discounts))
    raw, returns = (np.concatenate(x) for x in zip(*found, strict=True))
    advantages = whiten(raw)
    read = [None] * len(trajectories) if features is None else features.tensor_split(torch.from_numpy(ends))
    credit = [
        Credit(*parts)
        for parts in zip(np.split(advantages, ends), np.split(values, ends), np.split(returns, ends), read, strict=True)
    ]
    for t, c in zip(trajectories, credit, strict=True):
        left = iter(c.advantages.tolist())
        for segment in t.segments:
            segment.advantages = [next(left) if m else 0.0 for m in segment.mask]
    explained = 1 - float((returns - values).var()) / max(float(returns.var()), 1e-12)
    return credit, {"value/mean": float(values.mean()), "value/explained_var": explained}


def batches_of(trajectories: Sequence[Trajectory], credit: Sequence[Credit], cfg: Config) -> list[MicroBatch]:
    """Micro-batches of one optimizer step, with weights over all of it and what the critic needs."""
    micro = lay_out(trajectories, cfg)
    sizes = [len(m.targets) for m in micro]
    weights = token_weights(torch.cat([m.trajectory for m in micro]), len(trajectories), cfg.algo.aggregation)
    attach(micro, sizes, credit, weights)
    return micro


def attach(micro: Sequence[MicroBatch], sizes: list[int], credit: Sequence[Credit], weights: torch.Tensor) -> None:
    """Give micro-batches of these sizes their weights ``[N]`` and what the critic needs."""
    old_values, returns = (
        torch.from_numpy(np.concatenate([getattr(c, name) for c in credit])).float().split(sizes)
        for name in ("old_values", "returns")
    )
    features = [c.features for c in credit if c.features is not None]
    read = torch.cat(features).split(sizes) if features else [torch.empty(0)] * len(micro)
    parts = zip(micro, weights.split(sizes), old_values, returns, read, strict=True)
    for batch, weight, old_value, target, feature in parts:
        batch.weights, batch.old_values, batch.returns, batch.features = weight, old_value, target, feature


def make_loss(cfg: Config, head: torch.nn.Module) -> LossFn:
    """The loss of a micro-batch: policy, value and entropy."""
    algo, critic = cfg.algo, cfg.critic

    def loss_fn(out: TokenOutput, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        a, eps = batch.advantages, (algo.clip_low, algo.clip_high)
        policy_loss = clipped_surrogate(out.logp, batch.old_logp, a, *eps, algo.dual_clip)
        values = head(batch.features if critic.backbone == "frozen" else out.hidden)
        value_loss = clipped_value_loss(values, batch.old_values, batch.returns, critic.clip)
        ratio = token_ratio(out.logp.detach(), batch.old_logp)
        metrics = {
            "policy/entropy": out.entropy,
            "policy/clip_frac": clip_fraction(ratio, a, *eps, algo.dual_clip).expand_as(a),
            "policy/approx_kl": kl_k3(batch.old_logp, out.logp.detach()),
            "value/loss": value_loss,
        }
        loss = policy_loss + critic.coef * value_loss - algo.entropy_coef * out.entropy
        return (batch.weights * loss).sum(), metrics

    return loss_fn


def update(
    cfg: Config,
    learner: Learner,
    trajectories: Sequence[Trajectory],
    credit: Sequence[Credit],
    loss: LossFn,
    step: int,
) -> dict[str, float]:
    """All optimizer steps of one training step.

    Returns:
        Means over the steps; ``policy/mismatch_kl`` is that of the first, where the policy is still π_old.
    """
    found: list[dict[str, float]] = []
    for k in range(cfg.updates):
        order = seeding.data_rng(cfg.seed, step * cfg.updates + k).permutation(len(trajectories))
        for part in np.array_split(order, cfg.minibatches):
            part = np.sort(part)
            micro = batches_of([trajectories[i] for i in part], [credit[i] for i in part], cfg)
            found.append(learner.step(micro, loss, cfg.rollout.temperature))
    means = {name: float(np.mean([m[name] for m in found])) for name in found[0]}
    return {**means, "policy/mismatch_kl": found[0]["policy/approx_kl"]}


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("ppo", cfg, out, resume) as job:
        critic = Critic(job.model, cfg.critic, seeding.init_seed(cfg.seed))
        reference = (critic.start or frozen_copy(job.model)) if cfg.algo.kl_coef else None
        loss = make_loss(cfg, critic.head)
        learner = Learner(job.model, cfg.optim, critic.head, cfg.critic.lr)
        for step in job.steps(learner):
            groups = job.rollout.collect(group_tasks(cfg.seed, step, cfg.episodes, 1))
            trajectories = [t for g in groups for t in g.trajectories]
            if len(trajectories) < cfg.minibatches:
                why = "; ".join(job.rollout.stats.messages.values())
                raise TooManyFailures(f"only {len(trajectories)} episodes of step {step} did not fail: {why}")
            with job.update(trajectories) as metrics:
                credit, values = assign_credit(cfg, critic, reference, trajectories)
                metrics |= values
                metrics |= update(cfg, learner, trajectories, credit, loss, step)
    return job.results()
