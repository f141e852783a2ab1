"""How far the engine that sampled is from the trainer's model, and importance weights that make up for it.

At every sampled token, μ its probability at sampling and π_old that under the trainer's model before the update:

    ρ = π_old / μ
    truncated:  w = min(ρ, C)                      Yao et al., "Your efficient RL framework secretly brings you
                                                   off-policy RL training" (2025)
    masked:     w = ρ if 1/C ≤ ρ ≤ C, else 0       IcePop, Ling team, "Every step evolves" (2510.18855)

The loss of a token is multiplied by w by way of its advantage, and its ratio is π_θ / π_old instead of π_θ / μ.
Without a correction μ stands for π_old.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from agentgym.errors import AgentGymError, ConfigError
from agentgym.learner.learner import OptimConfig
from agentgym.learner.logprobs import token_logprobs
from agentgym.learner.losses import kl_k3
from agentgym.learner.pack import pack, rows_of
from agentgym.types import Trajectory


@dataclass
class MismatchConfig:
    """What is done about an engine that samples from another distribution than the trainer's.

    Attributes:
        correct: none, truncated or masked importance weights.
        cap: C.
        warn: Mean KL divergence (k3, in nats a token) from engine to trainer above which a run warns.
        refuse: That above which it stops before the update.
    """

    correct: Literal["none", "truncated", "masked"] = "none"
    cap: float = 2.0
    warn: float = 0.01
    refuse: float = 0.1

    def __post_init__(self) -> None:
        if not 1 < self.cap < math.inf:
            raise ConfigError(f"mismatch.cap is {self.cap}: it must be above 1")
        for name in ("warn", "refuse"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"mismatch.{name} is {getattr(self, name)}: it must be above 0")
        if self.warn > self.refuse:
            raise ConfigError(f"mismatch.warn ({self.warn}) must be at most mismatch.refuse ({self.refuse})")


def importance(log_ratio: torch.Tensor, config: MismatchConfig) -> torch.Tensor:
    """Weights w ``[N]`` of log ρ ``[N]``; 1 without a correction."""
    if config.correct == "none":
        return torch.ones_like(log_ratio)
    limit = math.log(config.cap)
    if config.correct == "truncated":
        return log_ratio.clamp(max=limit).exp()
    return torch.where(log_ratio.abs() <= limit, log_ratio, -math.inf).exp()


@torch.no_grad()
def measure(
    model: Any, trajectories: Sequence[Trajectory], optim: OptimConfig, temperature: float, config: MismatchConfig
) -> dict[str, float]:
    """Compare both at every sampled token, and write π_old and w into the segments if they are to be corrected.

    Args:
        model: The trainer's model before the update.
        trajectories: What was sampled.
        optim: How rows are packed.
        temperature: Temperature they were sampled at.
        config: What is done about a difference.

    Returns:
        Metrics.

    Raises:
        AgentGymError: If the difference is larger than ``mismatch.refuse``.
    """
    device = next(model.parameters()).device
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, i)]
    micro = [batch.to(device) for batch in pack(rows, optim.token_budget, optim.share_prefixes)]
    model.eval()
    now = torch.cat([token_logprobs(model, batch, temperature).logp for batch in micro]).float().cpu()
    then = torch.cat([batch.old_logp for batch in micro]).cpu()
    weights = importance(now - then, config)
    kl = float(kl_k3(then, now).mean())
    if config.correct != "none":
        _write(trajectories, now.tolist(), weights.tolist())
    if not kl <= config.refuse:
        raise AgentGymError(
            f"the engine samples from another distribution than the trainer's model: {kl:.3g} nats a token "
            f"(mismatch.refuse is {config.refuse:g}). Do both have the same dtype and weights?"
        )
    if kl > config.warn:
        warnings.warn(
            f"the engine's log-probabilities are off by more than mismatch.warn={config.warn:g} nats a token: see "
            "policy/mismatch_kl, and consider mismatch.correct=truncated",
            stacklevel=2,
        )
    corrected = {} if config.correct == "none" else {"policy/mismatch_weight": float(weights.mean())}
    return {
        "policy/mismatch_kl": kl,
        "policy/mismatch_max": float((now - then).abs().max().exp()),
        **corrected,
    }


def _write(trajectories: Sequence[Trajectory], old: list[float], weights: list[float]) -> None:
    """Put numbers, one for each trained token, where `rows_of` finds them."""
    at = 0
    for segment in (s for t in trajectories for s in t.segments):
        places = [j for j, m in enumerate(segment.mask) if m]
        segment.old_logps, segment.weights = [0.0] * len(segment), [0.0] * len(segment)
        for j in places:
            segment.old_logps[j], segment.weights[j] = old[at], weights[at]
            at += 1
