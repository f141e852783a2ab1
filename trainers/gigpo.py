"""GiGPO: GRPO's advantage of the episode, plus one of each turn among turns that were taken at the same observation.

G trajectories of one task; r[i,k] is the reward of turn k of trajectory i, o[i,k] what the policy had read before it:

    A^E[i]   = R_i − mean_g R                            R_i = Σ_k r[i,k]
    G[i,k]   = Σ_{j≥k} γ^{j−k} r[i,j]
    A^S[i,k] = G[i,k] − mean of G over the turns of the group whose anchor is o[i,k];    0 if there is no other
    A[i,k]   = A^E[i] + w A^S[i,k]                       on every sampled token of turn k
    L        = GRPO's loss, token_mean

Under `norm: mean_std_norm` both parts are divided by the standard deviation (n − 1) of what they were centred over.

| equation | function                            |
|----------|-------------------------------------|
| anchor   | `anchors`                           |
| A^S      | `credit.anchor_advantage`           |
| A        | `credit.gigpo`, `assign_advantages` |
| L        | `grpo.make_loss`                    |

Source: GiGPO (2505.10978). The authors' code takes mean_g R over turns instead of trajectories (`episode_mean: step`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from agentgym.trainers import grpo

from agentgym.config import build, overlay
from agentgym.credit import gigpo
from agentgym.errors import ConfigError, unknown
from agentgym.evaluate import Evaluation
from agentgym.learner.learner import Learner
from agentgym.learner.model import frozen_copy
from agentgym.training import Training
from agentgym.types import Group, Trajectory


@dataclass
class Gigpo:
    """The advantages.

    Attributes:
        gamma: γ, discount from one turn to the next, in the step part only.
        step_weight: w.
        norm: mean_norm or mean_std_norm.
        episode_mean: What mean_g R counts once: every trajectory (the paper), or every step (the authors' code).
        invalid_penalty: Taken off the reward of a turn whose text was no action.
    """

    gamma: float = 0.95
    step_weight: float = 1.0
    norm: Literal["mean_norm", "mean_std_norm"] = "mean_norm"
    episode_mean: Literal["trajectory", "step"] = "trajectory"
    invalid_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gigpo.gamma is {self.gamma}: it must be between 0 and 1")
        for name in ("step_weight", "invalid_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"gigpo.{name} is {getattr(self, name)}: it must be 0 or more")


PRESETS: dict[str, dict[str, Any]] = {"gigpo": {}, "gigpo_std": {"norm": "mean_std_norm"}}


@dataclass
class Config(grpo.Config):
    """Settings of a GiGPO run: those of GRPO, whose ``algo`` is the loss, and the advantages.

    Attributes:
        preset: gigpo, or gigpo_std, which divides by the standard deviation.
        gigpo: The advantages.
    """

    preset: str = "gigpo"
    gigpo: Gigpo = field(default_factory=Gigpo)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo.center != "group" or self.algo.scale != "group":
            raise ConfigError("algo.center and algo.scale are GRPO's: GiGPO's advantages are set by gigpo.norm")
        if self.algo.overlong_length:
            raise ConfigError("algo.overlong_length changes the return of an episode, and GiGPO needs rewards of turns")
        if self.rollout.context == "workspace":
            raise ConfigError(
                "rollout.context=workspace shows the policy a report of its own in place of what happened: turns with "
                "the same observation then answer different prompts, and GiGPO would compare them as if they were one "
                "state; use append or window:K, which show every observation as it was"
            )


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config, the preset below the settings given.

    Raises:
        ConfigError: For an unknown preset or key, or settings that exclude each other.
    """
    preset = str(values.get("preset", "gigpo"))
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return build(Config, overlay({"algo": {"aggregation": "token_mean"}, "gigpo": PRESETS[preset]}, values))


def anchors(trajectory: Trajectory) -> list[tuple[str, ...]]:
    """The anchor of each turn: what the policy had read before it.

    After a text that was no action the policy reads what was wrong with it, and the environment has not moved: the
    anchor is then the observation before, with the complaint behind it. The complaint alone is the same everywhere.
    """
    out: list[tuple[str, ...]] = []
    for k, turn in enumerate(trajectory.turns):
        repeated = out[-1] if k and trajectory.turns[k - 1].parse_error is not None else ()
        out.append((*repeated, turn.observation))
    return out


def assign_advantages(cfg: Gigpo, groups: Sequence[Group]) -> tuple[np.ndarray, dict[str, float]]:
    """Write A[i,k] on every sampled token of turn k of trajectory i.

    Returns:
        Largest |A| of each trajectory, and metrics.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return np.zeros(0), {}
    rewards = [[u.reward - cfg.invalid_penalty * (u.parse_error is not None) for u in t.turns] for t in trajectories]
    seen, names = [anchors(t) for t in trajectories], [t.group for t in trajectories]
    whole, episode = (
        gigpo(rewards, seen, names, cfg.gamma, w, cfg.norm, cfg.episode_mean) for w in (cfg.step_weight, 0.0)
    )
    for trajectory, advantages in zip(trajectories, whole, strict=True):
        for segment in trajectory.segments:
            segment.advantages = [0.0] * len(segment)
        for turn, a in zip(trajectory.turns, advantages.tolist(), strict=True):
            written = trajectory.segments[turn.segment].advantages
            assert written is not None
            written[turn.start : turn.stop] = [a] * (turn.stop - turn.start)
    sizes = Counter((name, anchor) for name, met in zip(names, seen, strict=True) for anchor in met)
    turns = sum(sizes.values())
    flat, base = np.concatenate(whole), np.concatenate(episode)
    return np.array([np.abs(a).max() for a in whole]), {
        "gigpo/anchored_frac": sum(n for n in sizes.values() if n > 1) / turns,
        "gigpo/anchor_size": sum(n * n for n in sizes.values()) / turns,
        "gigpo/episode_abs": float(np.abs(base).mean()),
        "gigpo/step_abs": float(np.abs(flat - base).mean()),
    }


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    with Training("gigpo", cfg, out, resume) as job:
        reference = frozen_copy(job.model) if cfg.algo.kl_coef else None
        loss = grpo.make_loss(cfg.algo, reference, cfg.rollout.temperature)
        learner = Learner(job.model, cfg.optim)
        for step in job.steps(learner):
            groups, drawn = grpo.collect(cfg, job.rollout, step)
            shown = [t for g in drawn[:4] for t in g.trajectories]
            with job.update([t for g in drawn for t in g.trajectories], shown) as metrics:
                advantages, found = assign_advantages(cfg.gigpo, groups)
                metrics |= {**found, "group/kept": float(len(groups))}
                metrics |= grpo.update(cfg, learner, groups, advantages, loss)
    return job.results()
