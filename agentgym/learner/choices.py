"""Training a choice among whole actions: log P(a | o) = log softmax over the admissible actions of their scores.

The score of an action is the log-probability of its tokens, divided by its words or by nothing (see
`agentgym.policies.restricted`). The candidates of a turn are rows that share the turn's prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from agentgym.learner.pack import MicroBatch, TrainRow, pack
from agentgym.policies.restricted import Normalise
from agentgym.types import Trajectory


def _empty() -> torch.Tensor:
    return torch.empty(0)


@dataclass
class ChoiceBatch(MicroBatch):
    """A micro-batch whose N trained tokens are those of the C candidates of K turns.

    ``advantages``, ``weights``, ``old_values``, ``returns`` and ``features`` are those of the turns, ``[K]`` or
    ``[K, d]``, and ``old_logp`` holds log P of what was chosen, ``[K]``.

    Attributes:
        candidate: ``[N]`` candidate of each token, 0 to C-1.
        divisor: ``[C]`` what divides the log-probability of a candidate.
        turn: ``[C]`` turn of each candidate, 0 to K-1.
        chosen: ``[K]`` the candidate that was taken.
    """

    candidate: torch.Tensor = field(default_factory=_empty)
    divisor: torch.Tensor = field(default_factory=_empty)
    turn: torch.Tensor = field(default_factory=_empty)
    chosen: torch.Tensor = field(default_factory=_empty)


def choice_logprobs(score: torch.Tensor, turn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log P of every candidate ``[C]``, and the entropy of every turn's choice ``[K]``, in nats.

    Args:
        score: Score of each candidate ``[C]``.
        turn: Turn of each candidate ``[C]``, 0 to K-1.
    """
    turns = int(turn.max()) + 1
    top = score.detach().new_full((turns,), -torch.inf).scatter_reduce(0, turn, score.detach(), "amax")
    total = score.new_zeros(turns).index_add(0, turn, (score - top[turn]).exp())
    logp = score - (top + total.log())[turn]
    return logp, -score.new_zeros(turns).index_add(0, turn, logp.exp() * logp)


def scores_of(logp: torch.Tensor, batch: ChoiceBatch) -> torch.Tensor:
    """Score of every candidate ``[C]``, from the log-probabilities of all tokens ``[N]``."""
    return logp.new_zeros(len(batch.divisor)).index_add(0, batch.candidate, logp) / batch.divisor


def pack_choices(
    trajectories: Sequence[Trajectory], normalise: Normalise, token_budget: int, share_prefixes: bool = True
) -> list[ChoiceBatch]:
    """Pack every candidate of every turn; the turns keep their order from the first micro-batch to the last.

    Args:
        trajectories: Played by a `RestrictedPolicy`.
        normalise: What divides a candidate's log-probability: its ``words``, or ``none``.
        token_budget: Most tokens of a micro-batch, counted before sharing.
        share_prefixes: Compute a turn's prompt once for all its candidates.
    """
    rows: list[TrainRow] = []
    candidates, taken = [], []
    turns = [(t.segments[turn.segment], turn) for t in trajectories for turn in t.turns]
    for index, (segment, turn) in enumerate(turns):
        prompt, chosen = segment.ids[: turn.start], segment.ids[turn.start : turn.stop]
        for candidate in turn.candidates:
            ids = [*prompt, *candidate.ids]
            mask = [0] * len(prompt) + [1] * len(candidate.ids)
            rows.append(TrainRow(ids, mask, [0.0] * len(ids), [0.0] * len(ids), index))
        candidates.append(turn.candidates)
        taken.append(next(i for i, c in enumerate(turn.candidates) if c.ids == chosen))
    batches, first = [], 0
    for micro in pack(rows, token_budget, share_prefixes):
        stop = first + len(torch.unique(micro.trajectory))
        flat = [(k - first, c) for k in range(first, stop) for c in candidates[k]]
        turn_of = torch.tensor([k for k, _ in flat])
        divisor = torch.tensor([float(c.words) if normalise == "words" else 1.0 for _, c in flat])
        starts = torch.searchsorted(turn_of, torch.arange(stop - first))
        batch = ChoiceBatch(
            **vars(micro),
            candidate=torch.repeat_interleave(torch.tensor([len(c.ids) for _, c in flat])),
            divisor=divisor,
            turn=turn_of,
            chosen=starts + torch.tensor(taken[first:stop]),
        )
        score = torch.tensor([c.logp for _, c in flat]) / divisor
        batch.old_logp = choice_logprobs(score, turn_of)[0][batch.chosen]
        batches.append(batch)
        first = stop
    return batches
