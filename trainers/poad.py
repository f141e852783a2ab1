"""POAD: policy optimisation with action decomposition, and the methods its paper compares it with.

Turn t has the action w[t,1..n_t]; r_t comes after its last token; V[t,j] is the value before token j, m = 0 at the end.

    last token   δ = r_t + γ_a m V[t+1,1] − V[t,j],     A[t,j] = δ + γ_a λ_a m A[t+1,1]
    before it    δ = γ_w V[t,j+1] − V[t,j],             A[t,j] = δ + γ_w λ_w A[t,j+1]
    y = A + V                                           target of the critic (`critic_target: gae`)
    y = V̄[t,j+1]  |  r_t + γ_a m V̄[t+1,1]               with a target network V̄ (`one_step`, the paper's eq. 15)
    Â  = (A − mean) / (std + 1e-8)                      over the tokens of a mini-batch
    ρ  = π_θ(w) / π_old(w)
    L_π = (1/N) Σ −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) − c_H H
    L_V = c_V (1/N) Σ ½ max((V_θ − y)², (clip(V_θ, V ± ε) − y)²)
    KL  = (1/N) Σ (ρ − 1) − log ρ                       above `kl_skip` the policy's step is left out, the critic's kept

| method  | γ_w | λ_w | else                                                                                           |
|---------|-----|-----|------------------------------------------------------------------------------------------------|
| poad    | 1   | λ_a | backup with action decomposition (BAD)                                                         |
| ntpo    | γ_a | λ_a | tokens as turns                                                                                |
| archer  | γ_a | λ_a | a turn ends in V[t+1,n], the value before the *last* token of the next action                  |
| twosome | –   | –   | one decision a turn, P(a|o) = softmax_a (log π(a|o) / words(a)) over the admissible actions    |

| equation               | function                                    |
|------------------------|---------------------------------------------|
| A, y                   | `token_advantages`, `credit.turn_gae`       |
| y of `one_step`        | `one_step_targets`                          |
| twosome's A            | `action_advantages`                         |
| Â                      | `normalise`                                 |
| L_π                    | `learner.losses.clipped_surrogate`          |
| L_V                    | `learner.losses.clipped_value_loss`         |
| log P(a|o), its H      | `learner.choices.choice_logprobs`           |
| P(a|o) when acting     | `policies.restricted`                       |

Source: POAD (2405.15821) and its code; TWOSOME (2401.14151). λ_w = λ_a is the code's; with λ_w = 1 the advantage of an
action's first token is the action's own. An episode that runs out of turns is over, as in the code. Advantages are
normalised over sampled tokens only, where the code also drops those that happen to be 0.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from agentgym.trainers import ppo

from agentgym import seeding
from agentgym.config import build
from agentgym.credit import turn_gae
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.evaluate import Evaluation
from agentgym.learner.choices import ChoiceBatch, choice_logprobs, pack_choices, scores_of
from agentgym.learner.critic import Critic, CriticConfig, ValueHead
from agentgym.learner.learner import Learner, LossFn
from agentgym.learner.logprobs import TokenOutput
from agentgym.learner.losses import clip_fraction, clipped_surrogate, clipped_value_loss, kl_k3, token_ratio
from agentgym.learner.pack import MicroBatch
from agentgym.policies.restricted import RestrictedPolicy, require_choice
from agentgym.rollout import group_tasks
from agentgym.training import Training, TrainingConfig
from agentgym.types import Trajectory

METHODS = ("poad", "ntpo", "archer", "twosome")


@dataclass
class Algo:
    """POAD's own settings; the defaults are those of its code for VirtualHome.

    Attributes:
        method: poad, ntpo, archer or twosome.
        acting: ``restricted`` chooses among the admissible actions, ``free`` writes; twosome needs the former.
        normalise: What divides an action's log-probability when choosing: its words, or none.
        gamma: γ_a.
        lam: λ_a.
        gamma_token: γ_w; None as the method says.
        lam_token: λ_w; None for λ_a.
        clip: ε.
        entropy_coef: c_H.
        kl_skip: Largest KL of a mini-batch whose step the policy takes; None for any.
        critic_target: gae or one_step.
        target_every: Training steps between copies of the critic to the target network, for one_step.
    """

    method: Literal["poad", "ntpo", "archer", "twosome"] = "poad"
    acting: Literal["restricted", "free"] = "restricted"
    normalise: Literal["words", "none"] = "words"
    gamma: float = 0.95
    lam: float = 0.95
    gamma_token: float | None = None
    lam_token: float | None = None
    clip: float = 0.2
    entropy_coef: float = 1e-4
    kl_skip: float | None = 0.02
    critic_target: Literal["gae", "one_step"] = "gae"
    target_every: int = 1

    def __post_init__(self) -> None:
        for name in ("gamma", "lam", "gamma_token", "lam_token"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"algo.{name} is {value}: it must be between 0 and 1")
        if not 0 < self.clip < 1:
            raise ConfigError(f"algo.clip is {self.clip}: it must be between 0 and 1")
        if not 0 <= self.entropy_coef < math.inf:
            raise ConfigError(f"algo.entropy_coef is {self.entropy_coef}: it must be 0 or more")
        if self.kl_skip is not None and not 0 < self.kl_skip < math.inf:
            raise ConfigError(f"algo.kl_skip is {self.kl_skip}: it must be above 0, or null to skip nothing")
        if self.target_every < 1:
            raise ConfigError(f"algo.target_every is {self.target_every}: it must be at least 1")
        if self.method == "twosome":
            if self.acting == "free":
                raise ConfigError("algo.method=twosome optimises a choice among admissible actions: acting=restricted")
            if self.gamma_token is not None or self.lam_token is not None:
                raise ConfigError("algo.method=twosome knows no tokens: leave algo.gamma_token and algo.lam_token out")

    @property
    def discounts(self) -> tuple[float, float, float, float]:
        """γ_a, λ_a, γ_w, λ_w."""
        by_method = 1.0 if self.method == "poad" else self.gamma
        gamma_token = by_method if self.gamma_token is None else self.gamma_token
        return self.gamma, self.lam, gamma_token, self.lam if self.lam_token is None else self.lam_token


@dataclass
class Config(TrainingConfig):
    """Settings of a POAD run, beside those that every trainer has.

    Attributes:
        critic: The critic; a frozen backbone and an own head, as in POAD's code.
        algo: The algorithm.
        episodes: Episodes of a step.
    """

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(clip=0.2))
    algo: Algo = field(default_factory=Algo)
    episodes: int = 32
    updates: int = 5
    minibatches: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minibatches > self.episodes:
            raise ConfigError(f"minibatches ({self.minibatches}) exceeds episodes ({self.episodes})")
        if self.algo.acting == "restricted" and self.rollout.temperature != 1:
            raise ConfigError(
                f"rollout.temperature is {self.rollout.temperature}: a restricted choice is trained as it is drawn at 1"
            )
        frozen = self.critic.backbone == "frozen"
        if self.algo.method == "twosome" and not frozen:
            raise ConfigError("algo.method=twosome needs critic.backbone=frozen: its value stands before the action")
        if self.algo.critic_target == "one_step" and not frozen:
            raise ConfigError("algo.critic_target=one_step needs critic.backbone=frozen: only the head is copied")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config.

    Raises:
        ConfigError: For an unknown key, or settings that exclude each other.
    """
    return build(Config, values)


def lengths_of(trajectory: Trajectory) -> list[int]:
    """Sampled tokens n_t of each turn."""
    return [turn.stop - turn.start for turn in trajectory.turns]


def token_advantages(
    algo: Algo, rewards: np.ndarray, values: np.ndarray, lengths: Sequence[int], last_value: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A and y of every sampled token of one episode.

    Args:
        algo: Settings.
        rewards: r of each token ``[N]``, on the last token of a turn.
        values: V before each token ``[N]``.
        lengths: n_t, summing to N.
        last_value: V after the last token.

    Returns:
        A and y, both ``[N]``.
    """
    if algo.method == "archer":
        ends, starts = np.cumsum(lengths)[:-1] - 1, np.cumsum(lengths)[:-1]
        last = np.cumsum(lengths)[1:] - 1
        rewards = rewards.astype(float)
        rewards[ends] += algo.gamma * (values[last] - values[starts])
    return turn_gae(rewards, values, lengths, *algo.discounts, last_value)


def action_advantages(
    algo: Algo, rewards: np.ndarray, values: np.ndarray, last_value: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A and y of every turn of one episode, from r ``[T]`` and V before each action ``[T]``: ordinary GAE."""
    return turn_gae(rewards, values, [1] * len(values), algo.gamma, algo.lam, last_value=last_value)


def one_step_targets(
    algo: Algo, rewards: np.ndarray, target_values: np.ndarray, lengths: Sequence[int], last_value: float = 0.0
) -> np.ndarray:
    """One-step targets y of the critic ``[N]``, from the target network's values ``[N]``."""
    following = np.append(target_values[1:], last_value)
    discount = np.full(len(following), algo.discounts[2])
    discount[np.cumsum(lengths) - 1] = algo.gamma
    return np.asarray(rewards + discount * following)


def normalise(advantages: torch.Tensor) -> torch.Tensor:
    """Â of the tokens (or actions) of a mini-batch ``[N]``, with the population's standard deviation."""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)


def target_of(critic: Critic) -> ValueHead:
    """The target network V̄: a module of the head's, so that checkpoints hold it."""
    target = critic.head.target
    assert isinstance(target, ValueHead)
    return target


def assign_credit(
    cfg: Config, critic: Critic, trajectories: Sequence[Trajectory]
) -> tuple[list[ppo.Credit], dict[str, float]]:
    """A, V and y of every sampled token of the step, or of every turn for twosome; not yet normalised."""
    algo = cfg.algo
    values, features = critic.evaluate(ppo.lay_out(trajectories, cfg))
    goal = values
    if algo.critic_target == "one_step":
        with torch.no_grad():
            goal = target_of(critic)(features).double().cpu().numpy()
    credit, ends = [], np.cumsum([t.action_tokens for t in trajectories])[:-1]
    read = [None] * len(trajectories) if features is None else features.tensor_split(torch.from_numpy(ends))
    for t, v, g, f in zip(trajectories, np.split(values, ends), np.split(goal, ends), read, strict=True):
        lengths, rewards = lengths_of(t), ppo.token_rewards(t)
        if algo.method == "twosome":
            starts = np.cumsum([0, *lengths[:-1]])
            rewards, v, g = np.array([turn.reward for turn in t.turns]), v[starts], g[starts]
            f = None if f is None else f[starts]
            lengths = [1] * len(lengths)
            advantages, targets = action_advantages(algo, rewards, v)
        else:
            advantages, targets = token_advantages(algo, rewards, v, lengths)
        if algo.critic_target == "one_step":
            targets = one_step_targets(algo, rewards, g, lengths)
        credit.append(ppo.Credit(advantages, v, targets, f))
    old, y = (np.concatenate([getattr(c, name) for c in credit]) for name in ("old_values", "returns"))
    explained = 1 - float((y - old).var()) / max(float(y.var()), 1e-12)
    return credit, {"value/mean": float(old.mean()), "value/explained_var": explained}


def batches_of(trajectories: Sequence[Trajectory], credit: Sequence[ppo.Credit], cfg: Config) -> list[MicroBatch]:
    """Micro-batches of one optimizer step, with Â and weights over all of it."""
    advantages = normalise(torch.from_numpy(np.concatenate([c.advantages for c in credit]))).float()
    micro: list[MicroBatch]
    if cfg.algo.method == "twosome":
        choices = pack_choices(trajectories, cfg.algo.normalise, cfg.optim.token_budget, cfg.optim.share_prefixes)
        sizes, micro = [len(c.chosen) for c in choices], list(choices)
    else:
        micro = ppo.lay_out(trajectories, cfg)
        sizes = [len(m.targets) for m in micro]
    for batch, part in zip(micro, advantages.split(sizes), strict=True):
        batch.advantages = part
    ppo.attach(micro, sizes, credit, torch.full((sum(sizes),), 1 / sum(sizes)))
    return micro


def make_loss(cfg: Config, head: torch.nn.Module) -> LossFn:
    """The loss of a micro-batch: policy, value and entropy, over tokens or over choices."""
    algo, critic = cfg.algo, cfg.critic

    def loss_fn(out: TokenOutput, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logp, entropy = out.logp, out.entropy
        if isinstance(batch, ChoiceBatch):
            chosen, entropy = choice_logprobs(scores_of(out.logp, batch), batch.turn)
            logp = chosen[batch.chosen]
        a, eps = batch.advantages, (algo.clip, algo.clip)
        policy_loss = clipped_surrogate(logp, batch.old_logp, a, *eps)
        values = head(batch.features if critic.backbone == "frozen" else out.hidden)
        value_loss = clipped_value_loss(values, batch.old_values, batch.returns, critic.clip)
        metrics = {
            "policy/entropy": entropy,
            "policy/clip_frac": clip_fraction(token_ratio(logp.detach(), batch.old_logp), a, *eps).expand_as(a),
            "policy/approx_kl": kl_k3(batch.old_logp, logp.detach()),
            "value/loss": value_loss,
        }
        loss = policy_loss + critic.coef * value_loss - algo.entropy_coef * entropy
        return (batch.weights * loss).sum(), metrics

    return loss_fn


def update(
    cfg: Config,
    learner: Learner,
    trajectories: Sequence[Trajectory],
    credit: Sequence[ppo.Credit],
    loss: LossFn,
    step: int,
) -> dict[str, float]:
    """All optimizer steps of one training step: means over them, and the share in which the policy stood still."""
    algo, found = cfg.algo, []
    temperature = 1.0 if algo.acting == "restricted" else cfg.rollout.temperature
    for k in range(cfg.updates):
        order = seeding.data_rng(cfg.seed, step * cfg.updates + k).permutation(len(trajectories))
        for part in np.array_split(order, cfg.minibatches):
            part = np.sort(part)
            micro = batches_of([trajectories[i] for i in part], [credit[i] for i in part], cfg)
            found.append(learner.step(micro, loss, temperature, lambda m: not too_far(algo, m)))
    means = {name: float(np.mean([m[name] for m in found])) for name in found[0]}
    skipped = float(np.mean([too_far(algo, m) for m in found]))
    return {**means, "policy/skipped": skipped, "policy/mismatch_kl": found[0]["policy/approx_kl"]}


def too_far(algo: Algo, metrics: Mapping[str, float]) -> bool:
    """Whether a mini-batch's KL forbids the policy's step."""
    return algo.kl_skip is not None and metrics["policy/approx_kl"] > algo.kl_skip


def main(cfg: Config, out: str | Path, resume: bool = False) -> dict[str, Evaluation]:
    """Collect, credit, update, log, save; evaluation before and after; the model is left in ``OUT/final``."""
    algo = cfg.algo
    acting = functools.partial(RestrictedPolicy, normalise=algo.normalise) if algo.acting == "restricted" else None
    with Training("poad", cfg, out, resume, acting) as job:
        if acting:
            require_choice(job.first_info())
        critic = Critic(job.model, cfg.critic, seeding.init_seed(cfg.seed))
        if algo.critic_target == "one_step":
            critic.head.target = copy.deepcopy(critic.head).requires_grad_(False)
        loss = make_loss(cfg, critic.head)
        learner = Learner(job.model, cfg.optim, critic.head, cfg.critic.lr)
        for step in job.steps(learner):
            if algo.critic_target == "one_step" and step % algo.target_every == 0:
                target_of(critic).layers.load_state_dict(critic.head.layers.state_dict())
            groups = job.rollout.collect(group_tasks(cfg.seed, step, cfg.episodes, 1))
            trajectories = [t for g in groups for t in g.trajectories]
            if len(trajectories) < cfg.minibatches:
                why = "; ".join(job.rollout.stats.messages.values())
                raise TooManyFailures(f"only {len(trajectories)} episodes of step {step} did not fail: {why}")
            with job.update(trajectories) as metrics:
                credit, values = assign_credit(cfg, critic, trajectories)
                metrics |= values
                metrics |= update(cfg, learner, trajectories, credit, loss, step)
    return job.results()
