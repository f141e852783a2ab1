"""LSPO's preference data: what was said in self-play, seen as latent strategies and compared by their regrets.

| equation                                                     | function        |
|--------------------------------------------------------------|-----------------|
| c(x), the latent strategy of a speech                        | `Ear`           |
| x(I), the abstract game's view of a moment of a real game    | `abstract`      |
| s_j = V_ρ(x)[c_j], the regret of candidate j's latent (of a latent with an argument: and of whom it names) | `Judge` |
| (y_w, y_l) = (argmax_j s_j, argmin_j s_j)                    | `pairs_of`      |
| −log σ(β [(log π − log π_ref)(y_w) − (log π − log π_ref)(y_l)]) | `dpo_rows`, `make_loss`, `losses.dpo_loss` |

The paper says that the candidate of lower regret is preferred; with its own definition of regret, and in regret
matching, a higher one is better and played more. That is the default; ``low_regret`` is the paper's sentence.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from agentgym.envs.werewolf_game import CHANCE, TALK, State
from agentgym.envs.werewolf_rules import Rules
from agentgym.envs.werewolf_text import clean, parse

from agentgym.arguments import argument
from agentgym.deep_cfr import DeepCFR
from agentgym.latents import Latents, relative
from agentgym.learner.learner import LossFn
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.losses import dpo_loss
from agentgym.learner.pack import MicroBatch, TrainRow, pack
from agentgym.types import Trajectory, Turn

Prefer = Literal["high_advantage", "low_regret"]
PairRule = Literal["extremes", "all"]


COUNTS = ("speeches", "unlike", "paired", "unread")
"""What `Judge.pairs` counts."""


@dataclass
class Pair:
    """Two answers to one prompt.

    Attributes:
        game: The game they come from.
        agent: Who was to speak.
        prompt: Token ids of what it had read.
        chosen: Token ids of the answer that is preferred.
        rejected: Of the other one.
        gap: How far their regrets are apart.
    """

    game: str
    agent: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    gap: float


@dataclass
class Speech:
    """A moment of a game in which a seat spoke.

    Attributes:
        state: The abstract game at that moment; a copy.
        seat: Who speaks.
        text: What was said.
    """

    state: State
    seat: int
    text: str


class Heard(NamedTuple):
    """What a speech is in the abstract game.

    Attributes:
        latent: Strategy of the speaker's role.
        code: Public code.
        target: The seat that it accuses or clears; the number of seats if none, or if the strategy has another stance.
    """

    latent: int
    code: int
    target: int


class Hears(Protocol):
    """Something that hears speeches as latent strategies."""

    def __call__(self, seat: int, role: int, text: str) -> Heard:
        """Hear what a seat said."""
        ...


class Ear:
    """Hears speeches; each text is encoded once.

    Attributes:
        latents: What speeches are.
        players: Seats of the game.
    """

    def __init__(self, latents: Latents, players: int):
        """Know nothing yet."""
        self.latents, self.players = latents, players
        self._latent: dict[tuple[int, str], int] = {}
        self._code: dict[str, int] = {}

    def learn(self, role: int, texts: Sequence[str]) -> None:
        """Encode texts of a role, already relative, together."""
        new = sorted({text for text in texts if (role, text) not in self._latent})
        if new:
            self._latent.update(
                zip([(role, text) for text in new], self.latents.assign(role, new).tolist(), strict=True)
            )
        new = [text for text in new if text not in self._code]
        if new:
            self._code.update(zip(new, self.latents.codes(new).tolist(), strict=True))

    def __call__(self, seat: int, role: int, text: str) -> Heard:
        """Hear what a seat said."""
        heard, stances = relative(text, seat, self.players), self.latents.stances
        self.learn(role, [heard])
        latent = self._latent[role, heard]
        stance, target = argument(text, seat, self.players)
        if stances is None or stances[role][latent] != stance:
            target = self.players
        return Heard(latent, self._code[heard], target)


def decisions(state: State, heard: Heard) -> list[tuple[State, int]]:
    """The decisions that a speech is, each with the state in which it is made: latent strategy, and whom it names."""
    n, latent = state.rules.n, state.rules.n + 1 + heard.latent
    named = state.child(latent)
    if not named.naming:
        return [(state, latent)]
    return [(state, latent), (named, heard.target if heard.target in named.legal() else n)]


def statement(text: str, brief: bool, most: int) -> str | None:
    """What the others hear of an answer; None if it cannot be read."""
    parsed = parse(text, (), brief)
    return None if parsed.action is None else clean(parsed.action, most)


def abstract(
    actions: Sequence[int], said: Mapping[tuple[int, int], str], rules: Rules, ear: Hears
) -> tuple[State, list[Speech]]:
    """Play a game of text again as the abstract game, each speech as its latent strategy and public code.

    Args:
        actions: All that was decided and drawn, as ``infos[agent]`` of `agentgym.envs.werewolf` tells.
        said: Round and seat -> the speech.
        rules: Rules of the abstract game; those of the game of text differ in speeches only.
        ear: Hears them.

    Returns:
        The abstract game where the actions end, and the moments in which somebody spoke.
    """
    plain = State(Rules(rules.n, rules.parity, rules.rewards, (1, 1, 1, 1), None, rules.abstain, rules.max_rounds))
    state, speeches = State(rules), []
    for action in actions:
        if plain.player() != CHANCE and plain.phase == TALK:
            seat = plain.player()
            text = said[plain.round, seat]
            speeches.append(Speech(state.copy(), seat, text))
            heard = ear(seat, state.roles[seat], text)
            for _, decided in decisions(state.copy(), heard):
                state.play(decided)
            if rules.codes:
                state.play(heard.code)
        else:
            state.play(action)
        plain.play(action)
    return state, speeches


@dataclass
class Record:
    """A game of self-play, as its seats remember it.

    Attributes:
        seats: Trajectories of all seats, in their order.
        actions: All that was decided and drawn.
        said: Round and seat -> the speech.
        winner: wolves, village or nobody.
    """

    seats: Sequence[Trajectory]
    actions: list[int]
    said: dict[tuple[int, int], str]
    winner: str

    @classmethod
    def of(cls, seats: Sequence[Trajectory]) -> Record:
        """Read what a seat was told at the end (one that never decided was told nothing)."""
        end = next(t.info for t in seats if "actions" in t.info)
        said = {(number, seat): text for number, seat, text in json.loads(str(end["speeches"]))}
        return cls(seats, [int(a) for a in str(end["actions"]).split()], said, str(end["winner"]))

    def role(self, seat: int, rules: Rules) -> int:
        """The role of a seat."""
        return rules.deals[self.actions[0]][0][seat]


def pairs_of(
    latents: Sequence[Hashable],
    scores: Sequence[float],
    prefer: Prefer = "high_advantage",
    rule: PairRule = "extremes",
    min_gap: float = 1e-6,
) -> list[tuple[int, int]]:
    """Which candidates are compared: (chosen, rejected) positions; none if all are one strategy.

    Args:
        latents: c_j of each candidate, with whom it names.
        scores: s_j of each candidate.
        prefer: ``high_advantage``, or ``low_regret`` for the opposite.
        rule: The highest and the lowest only, or ``all`` pairs of different strategies.
        min_gap: Pairs whose scores differ by less are left out.
    """
    s = np.asarray(scores, float)
    if len(set(latents)) < 2:
        return []
    found = [(int(s.argmax()), int(s.argmin()))] if rule == "extremes" else itertools.permutations(range(len(s)), 2)
    kept = [(w, k) for w, k in found if latents[w] != latents[k] and s[w] - s[k] >= min_gap]
    return kept if prefer == "high_advantage" else [(k, w) for w, k in kept]


@dataclass
class Judge:
    """Compares the candidates of speeches.

    Attributes:
        rules: Of the abstract game.
        ear: Hears them.
        solver: Its regrets judge them.
        decode: Text of a reply's tokens.
        brief: Whether speeches are plain text.
        max_speech: Characters after which a speech is cut.
        prefer: See `pairs_of`.
        rule: See `pairs_of`.
        min_gap: See `pairs_of`.
    """

    rules: Rules
    ear: Ear
    solver: DeepCFR
    decode: Callable[[Sequence[int]], str]
    brief: bool
    max_speech: int
    prefer: Prefer = "high_advantage"
    rule: PairRule = "extremes"
    min_gap: float = 1e-6

    def learn(self, games: Sequence[Record]) -> None:
        """Hear all candidates of many games at once, which is faster than one after the other."""
        texts: dict[int, list[str]] = {}
        for game in games:
            for seat, trajectory in enumerate(game.seats):
                said = [text for turn in trajectory.turns if turn.candidates for text in self._answers(turn).values()]
                heard = (relative(text, seat, self.rules.n) for text in said)
                texts.setdefault(game.role(seat, self.rules), []).extend(heard)
        for role, found in texts.items():
            self.ear.learn(role, found)

    def pairs(self, game: Record) -> tuple[list[Pair], dict[str, float]]:
        """The preference pairs of one game.

        Args:
            game: Its turns hold the candidates of every speech.

        Returns:
            Pairs, and counts: ``speeches``; ``unlike``, with candidates of different strategies; ``paired``;
            ``unread``, for which nothing is compared because no answer could be read.
        """
        found: list[Pair] = []
        spoken = [[turn for turn in t.turns if turn.candidates and turn.parse_error is None] for t in game.seats]
        counts = dict.fromkeys(COUNTS, 0.0)
        for speech in abstract(game.actions, game.said, self.rules, self.ear)[1]:
            counts["speeches"] += 1
            trajectory, turns = game.seats[speech.seat], spoken[speech.seat]
            if not turns or self._statement(turns[0].text) != speech.text:
                counts["unread"] += 1
                continue
            turn = turns.pop(0)
            answers = self._answers(turn)
            of, scores = self._judged(speech, list(answers.values()))
            compared = pairs_of(of, scores, self.prefer, self.rule, self.min_gap)
            counts["unlike"] += len(set(of)) > 1
            counts["paired"] += bool(compared)
            ids, prompt = list(answers), trajectory.segments[turn.segment].ids[: turn.start]
            name, agent = (str(trajectory.info[key]) for key in ("game", "agent"))
            for w, k in compared:
                found.append(Pair(name, agent, prompt, list(ids[w]), list(ids[k]), scores[w] - scores[k]))
        return found, counts

    def _statement(self, text: str) -> str | None:
        return statement(text, self.brief, self.max_speech)

    def _answers(self, turn: Turn) -> dict[tuple[int, ...], str]:
        """Tokens and statement of each candidate that can be read; equal ones once."""
        read = {tuple(c.ids): self._statement(self.decode(c.ids)) for c in turn.candidates}
        return {ids: text for ids, text in read.items() if text is not None}

    def _judged(self, speech: Speech, texts: Sequence[str]) -> tuple[list[tuple[int, ...]], list[float]]:
        """What each text is, as the decisions for it, and the sum of their regrets."""
        role, seat, regrets = speech.state.roles[speech.seat], speech.seat, dict[tuple[int, ...], float]()
        found = []
        for text in texts:
            made = decisions(speech.state, self.ear(seat, role, text))
            found.append(tuple(action for _, action in made))
            if found[-1] not in regrets:
                values = self.solver.regrets(role, np.stack([state.tensor(seat) for state, _ in made]))
                regrets[found[-1]] = float(sum(v[action] for v, (_, action) in zip(values, made, strict=True)))
        return found, [regrets[one] for one in found]


def dpo_rows(pairs: Sequence[Pair]) -> list[TrainRow]:
    """Two rows a pair, chosen (advantage 1) and rejected (−1); the loss is on the tokens of the answers.

    The rows of a pair count as one trajectory, so that they stay in one micro-batch.
    """
    rows = []
    for number, pair in enumerate(pairs):
        for ids, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            before = len(pair.prompt)
            mask = [0] * before + [1] * len(ids)
            rows.append(TrainRow([*pair.prompt, *ids], mask, [0.0] * len(mask), [sign * m for m in mask], number))
    return rows


@torch.no_grad()
def add_reference(model: Any, rows: Sequence[TrainRow], token_budget: int) -> None:
    """Write log π_ref of every answer token into the rows, as the model stands."""
    device = next(model.parameters()).device
    model.eval()
    found = [token_logprobs(model, batch.to(device)).logp.cpu() for batch in pack(rows, token_budget)]
    logps = iter(torch.cat(found).tolist())
    for row in rows:
        row.logps = [next(logps) if m else 0.0 for m in row.mask]


def make_loss(beta: float, nll_weight: float = 0.0) -> LossFn:
    """DPO's loss, averaged over the pairs of the batch; ``old_logp`` is the reference's.

    ``nll_weight`` weighs the mean −log π of the chosen answer's tokens, which is added to it (not in the paper).
    """

    def loss(out: TokenOutput, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        pairs, index = batch.trajectory.unique(return_inverse=True)
        chosen = batch.advantages > 0

        def sums(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(pairs), device=values.device).index_add(0, index[of], values[of])

        policy = [sums(out.logp, of) for of in (chosen, ~chosen)]
        reference = [sums(batch.old_logp, of) for of in (chosen, ~chosen)]
        each = dpo_loss(*policy, *reference, beta=beta)
        nll = -policy[0] / sums(torch.ones_like(out.logp), chosen).clamp(min=1)
        won = beta * (policy[0] - reference[0]).detach()
        lost = beta * (policy[1] - reference[1]).detach()
        metrics = {
            "dpo/loss": each.detach(),
            "dpo/margin": won - lost,
            "dpo/chosen_reward": won,
            "dpo/rejected_reward": lost,
            "dpo/accuracy": (won > lost).float(),
            "dpo/chosen_nll": nll.detach(),
            "policy/entropy": out.entropy.detach(),
        }
        return (each + nll_weight * nll).sum() / batch.batch_trajectories, metrics

    return loss
