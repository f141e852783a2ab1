"""SLA's chooser (Xu et al. 2024, 2310.18940): a network that takes one of the candidates a model wrote, learned by PPO.

    ê = e + Attention(e),  e = (MLP(player), e_obs, e_1, ..., e_N)     one block, no positions      `Chooser.forward`
    s = (ê_player + ê_obs) / 2,  P(i) = softmax_i(s · ê_i / √d),  V = w · s                         `Chooser.forward`
    L = −E min(ρ A, clip(ρ, 1 ± 0.2) A) + E (V − R)² − 0.01 H                                        `update`

The player's vector is that of `agentgym.envs.werewolf_game.State.tensor`, then for each player a one-hot of the deduced
role and the confidence / 10. The language model (`agentgym.envs.werewolf_sla.SLAPolicy`) is not trained.

    learning = Learning(Chooser(encoder.width, 7), encoder, Rules())
    table = SelfPlay(make_env, {"sla": Seat(SLAPolicy(policy, choose=learning)), ...}, config, assign)
    for step in range(steps):
        learning.learn(table.collect(group_tasks(0, step, 8, 1)))

Not here: behaviour cloning before it, the population of styled agents and past choosers that the paper trains against,
and its size (10 million steps). `SelfPlay` decides who the opponents are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.envs.werewolf_sla import Choice, Deduction
from torch import Tensor, nn

from agentgym.credit import gae, whiten
from agentgym.embeddings import Encoder
from agentgym.selfplay import Game

CLIP, VALUE, ENTROPY, GRADIENT = 0.2, 1.0, 0.01, 10.0
GAMMA = LAM = 0.95
EPOCHS, SCALE = 10, 100.0


class Step(NamedTuple):
    """A choice: player ``[P]``, observation ``[d]``, candidates ``[N, d]``, and what came of the network."""

    player: np.ndarray
    observation: np.ndarray
    candidates: np.ndarray
    taken: int
    logp: float
    value: float


class Chooser(nn.Module):
    """Attention over player, observation and candidates.

    Attributes:
        inputs: Numbers of a player's vector.
    """

    def __init__(self, width: int, players: int, heads: int = 6, seed: int = 0):
        """Start afresh.

        Args:
            width: Of the encoder's vectors, d; ``heads`` must divide it.
            players: Seats of the game.
            heads: Of the attention.
            seed: Of the weights.
        """
        super().__init__()
        self.inputs = Rules(players).width + (len(ROLES) + 1) * players
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(self.inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            self.player = nn.Sequential(*layers, nn.Linear(width, width))
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.value = nn.Linear(width, 1)

    def forward(self, player: Tensor, observation: Tensor, candidates: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values.

        Args:
            player: ``[B, P]``.
            observation: ``[B, d]``.
            candidates: ``[B, N, d]``.
            real: Which of them there are ``[B, N]``.

        Returns:
            ``[B, N]`` and ``[B]``.
        """
        e = torch.cat([self.player(player)[:, None], observation[:, None], candidates], 1)
        hidden = torch.cat([torch.ones_like(real[:, :1])] * 2 + [real], 1)
        e = e + self.attention(e, e, e, key_padding_mask=~hidden, need_weights=False)[0]
        state = (e[:, 0] + e[:, 1]) / 2
        scores = (e[:, 2:] @ state[:, :, None])[:, :, 0] / e.shape[-1] ** 0.5
        return scores.masked_fill(~real, -torch.inf).log_softmax(-1), self.value(state)[:, 0]


def player_vector(rules: Rules, choice: Choice) -> np.ndarray:
    """What a seat knows, and what it has deduced ``[P]``."""
    actions, _ = choice.request.info["record"]
    state = State(rules)
    for action in actions:
        state.play(action)
    thoughts = np.zeros((rules.n, len(ROLES) + 1), np.float32)
    for row, seat in zip(thoughts, range(rules.n), strict=True):
        thought: Deduction | None = choice.deduced.get(f"player_{seat}")
        if thought is not None and thought.role is not None:
            row[ROLES.index(thought.role)] = 1.0
            row[-1] = thought.confidence / 10
    return np.concatenate([state.tensor(state.player()), thoughts.ravel()])


class Learning:
    """A chooser for `SLAPolicy` that samples, remembers what it did, and learns from finished games.

    Attributes:
        steps: Choices since the last update, by group, key of the episode and turn.
    """

    def __init__(self, chooser: Chooser, encoder: Encoder, rules: Rules, lr: float = 5e-4):
        """Start an optimizer; the rules are those of the game of text with one latent strategy a role."""
        self.chooser, self.encoder = chooser, encoder
        self.rules = Rules(
            rules.n, rules.parity, rules.rewards, (1,) * len(ROLES), None, rules.abstain, rules.max_rounds
        )
        self.optimizer = torch.optim.AdamW(chooser.parameters(), lr, eps=1e-5, weight_decay=1e-6)
        self.steps: dict[tuple[str, tuple[int, ...], int], Step] = {}

    def __call__(self, choice: Choice) -> int:
        """Sample a candidate."""
        texts = [str(choice.request.messages[-1]["content"]), *choice.texts]
        observation, *candidates = self.encoder.encode(texts)
        step = Step(player_vector(self.rules, choice), observation, np.stack(candidates), 0, 0.0, 0.0)
        with torch.inference_mode():
            logp, value = self.chooser(*_batch([step]))
        p = logp[0].exp().double().numpy()
        taken = int(choice.request.rng.choice(len(p), p=p / p.sum()))
        self.steps[choice.at] = step._replace(taken=taken, logp=float(logp[0, taken]), value=float(value[0]))
        return taken

    def learn(self, games: Sequence[Game]) -> dict[str, float]:
        """One PPO update from the choices in these games; those of other games are forgotten.

        Returns:
            Means of loss and entropy, and the number of choices.
        """
        steps: list[Step] = []
        advantages: list[np.ndarray] = []
        returns: list[np.ndarray] = []
        by_episode: dict[tuple[str, int], dict[int, Step]] = {}
        for (group, (_, member, seat), turn), step in self.steps.items():
            by_episode.setdefault((group, member * self.rules.n + seat), {})[turn] = step
        self.steps = {}
        for game in games:
            for trajectory in game.trajectories.values():
                found = by_episode.get((trajectory.group, trajectory.member), {})
                at = sorted(turn for turn in found if turn < len(trajectory.turns))
                if not at:
                    continue
                rewards = [turn.reward / SCALE for turn in trajectory.turns]
                between = [sum(rewards[a:b]) for a, b in zip(at, [*at[1:], len(rewards)], strict=True)]
                values = [found[turn].value for turn in at]
                advantage, target = gae(between, values, gamma=GAMMA, lam=LAM)
                steps += [found[turn] for turn in at]
                advantages.append(advantage)
                returns.append(target)
        return (
            update(self.chooser, self.optimizer, steps, np.concatenate(advantages), np.concatenate(returns))
            if steps
            else {}
        )


def update(
    chooser: Chooser,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[Step],
    advantages: np.ndarray,
    returns: np.ndarray,
) -> dict[str, float]:
    """PPO on choices, all of them in every epoch.

    Args:
        chooser: Trained in place.
        optimizer: Its optimizer.
        steps: ``[n]``.
        advantages: ``[n]``; they are whitened.
        returns: ``[n]``, targets of the values.
    """
    batch = _batch(steps)
    taken = torch.tensor([step.taken for step in steps])[:, None]
    old = torch.tensor([step.logp for step in steps])
    a, target = (torch.from_numpy(x).float() for x in (whiten(advantages), returns))
    sums = {"loss": 0.0, "entropy": 0.0}
    for _ in range(EPOCHS):
        logp, value = chooser(*batch)
        ratio = (logp.gather(1, taken)[:, 0] - old).exp()
        gain = torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a).mean()
        entropy = -(logp.exp() * logp.masked_fill(~batch[3], 0.0)).sum(1).mean()
        loss = -gain + VALUE * (value - target).square().mean() - ENTROPY * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(chooser.parameters(), GRADIENT)
        optimizer.step()
        sums = {"loss": sums["loss"] + float(loss.detach()), "entropy": sums["entropy"] + float(entropy.detach())}
    return {**{f"sla/{name}": value / EPOCHS for name, value in sums.items()}, "sla/choices": float(len(steps))}


def _batch(steps: Sequence[Step]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Player, observation, candidates padded with zeros, and which of them there are."""
    most = max(len(step.candidates) for step in steps)
    candidates = np.zeros((len(steps), most, steps[0].candidates.shape[1]), np.float32)
    real = np.zeros((len(steps), most), bool)
    for row, mask, step in zip(candidates, real, steps, strict=True):
        row[: len(step.candidates)], mask[: len(step.candidates)] = step.candidates, True
    stacked = (np.stack([step.player for step in steps]), np.stack([step.observation for step in steps]))
    return (
        torch.from_numpy(stacked[0]),
        torch.from_numpy(stacked[1]),
        torch.from_numpy(candidates),
        torch.from_numpy(real),
    )
