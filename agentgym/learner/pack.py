"""Training rows and how they are packed: no padding, shared prefixes computed once, a token budget per micro-batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from agentgym.errors import ConfigError
from agentgym.learner.attention import Packed
from agentgym.learner.places import has_grid, keys_of, positions_of
from agentgym.pictures import Picture
from agentgym.types import ImageSpan, Trajectory

_MIN_SHARED = 16


@dataclass
class TrainRow:
    """A row of tokens of one trajectory; the lists have equal length.

    Attributes:
        ids: Token ids.
        mask: 1 where the token is trained. The first token cannot be.
        logps: Log-probabilities of the policy that sampled, where the mask is 1.
        advantages: Advantages where the mask is 1, times the weights of its tokens.
        trajectory: Index of the trajectory in the whole batch.
        turns: Number of the turn in its trajectory where the mask is 1; empty for all 0.
        images: Where images stand in it.
        pictures: The images by hash.
    """

    ids: list[int]
    mask: list[int]
    logps: list[float]
    advantages: list[float]
    trajectory: int
    turns: list[int] = field(default_factory=list)
    images: list[ImageSpan] = field(default_factory=list)
    pictures: Mapping[str, Picture] = field(default_factory=dict)


@dataclass
class MicroBatch:
    """A packed micro-batch of T tokens, N of them trained.

    Attributes:
        ids: ``[T]`` token ids.
        positions: ``[T]`` position of each token in its sequence; ``[3, T]`` where images have positions on a grid.
        layout: Who attends to whom.
        at: ``[N]`` index into T of the token whose hidden state predicts the trained one.
        targets: ``[N]`` trained token ids.
        old_logp: ``[N]`` behaviour log-probabilities.
        advantages: ``[N]``.
        trajectory: ``[N]`` index of the trajectory in the whole batch.
        weights: ``[N]`` weight of each token in the loss, from ``losses.token_weights`` over the whole batch.
        old_values: ``[N]`` values of the critic at the rollout; empty without a critic.
        returns: ``[N]`` targets of the critic; empty without one.
        features: ``[N, d]`` what a frozen backbone gives the critic to read; empty without one.
        turns: ``[N]`` number of the turn in its trajectory, from 0.
        batch_trajectories: Trajectories of the whole batch.
        batch_tokens: Trained tokens of the whole batch.
        images: Where images stand in the T tokens, in order.
        pictures: The images by hash.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Packed
    at: torch.Tensor
    targets: torch.Tensor
    old_logp: torch.Tensor
    advantages: torch.Tensor
    trajectory: torch.Tensor
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    turns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    batch_trajectories: int = 0
    batch_tokens: int = 0
    images: Sequence[ImageSpan] = ()
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    def to(self, device: torch.device) -> MicroBatch:
        """Move the tensors."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


def rows_of(trajectory: Trajectory, index: int, per_turn: bool = False) -> list[TrainRow]:
    """Training rows of a trajectory: one per segment, turns merged by prefix.

    Args:
        trajectory: Its segments hold the tokens, and the advantages if they were computed.
        index: Index of the trajectory in the whole batch.
        per_turn: One row per turn instead, each with its whole prompt: the slow layout that the merged one must
            equal.
    """
    spans = [(s, 0, len(seg)) for s, seg in enumerate(trajectory.segments)]
    if per_turn:
        spans = [(turn.segment, turn.start, turn.stop) for turn in trajectory.turns]
    rows = []
    for s, start, stop in spans:
        segment = trajectory.segments[s]
        mask = [0] * start + segment.mask[start:stop]
        advantages = segment.advantages or [0.0] * len(segment)
        old = segment.old_logps or segment.logps
        if segment.weights is not None:
            advantages = [a * w for a, w in zip(advantages, segment.weights, strict=True)]
        turns = [0] * len(segment)
        for number, turn in enumerate(trajectory.turns):
            if turn.segment == s:
                turns[turn.start : turn.stop] = [number] * (turn.stop - turn.start)
        if any(mask):
            if mask[0]:
                raise ValueError(f"trajectory {index} trains the first token of a row, which nothing predicts")
            last = len(mask) - mask[::-1].index(1)
            if math.isnan(sum(itertools.compress(old, mask))):
                raise ConfigError(
                    f"trajectory {index} was written by {trajectory.policy}, whose tokens are not known: it can be "
                    "evaluated but not trained on; use a policy of this process, such as hf:FOLDER"
                )
            values = (segment.ids[:last], mask[:last], old[:last], advantages[:last])
            images = [image for image in segment.images if image.stop <= last]
            rows.append(TrainRow(*values, index, turns[:last], images, trajectory.pictures))
    return rows


def pack(rows: Sequence[TrainRow], token_budget: int, share_prefixes: bool = True) -> list[MicroBatch]:
    """Pack rows into micro-batches of at most ``token_budget`` tokens.

    The rows of a trajectory stay in one micro-batch (a sequence-level ratio needs them together); a trajectory
    longer than the budget gets a micro-batch of its own.

    Args:
        rows: Rows; the trajectories of a group side by side share most.
        token_budget: Most tokens of a micro-batch, counted before sharing.
        share_prefixes: Compute a prefix that several rows of a micro-batch begin with only once.
    """
    bins: list[list[TrainRow]] = []
    size = 0
    trajectories: dict[int, list[TrainRow]] = {}
    for row in rows:
        trajectories.setdefault(row.trajectory, []).append(row)
    for whole in trajectories.values():
        tokens = sum(len(row.ids) for row in whole)
        if not bins or size + tokens > token_budget:
            bins.append([])
            size = 0
        bins[-1] += whole
        size += tokens
    batches = [_micro_batch(b, share_prefixes) for b in bins]
    tokens = sum(len(batch.targets) for batch in batches)
    return [replace(batch, batch_trajectories=len(trajectories), batch_tokens=tokens) for batch in batches]


class _Tree:
    """Rows as a tree of spans: a span shared by several rows is their parent."""

    def __init__(self, rows: Sequence[TrainRow]):
        self.rows = rows
        self.keys = [keys_of(row.ids, row.images) for row in rows]
        self.grid = any(has_grid(row.images) for row in rows)
        self.places = [positions_of(len(row.ids), row.images) for row in rows] if self.grid else []
        self.ids: list[int] = []
        self.positions: list[Any] = []
        self.cu = [0]
        self.parents: list[int] = []
        self.flat: list[list[int]] = [[] for _ in rows]

    def span(self, members: Sequence[int], start: int, stop: int, parent: int) -> int:
        """Lay the tokens ``start:stop`` of the members (equal in all) down once."""
        base = len(self.ids)
        self.ids += self.rows[members[0]].ids[start:stop]
        self.positions += [self.places[members[0]][:, start:stop]] if self.grid else range(start, stop)
        self.cu.append(len(self.ids))
        self.parents.append(parent)
        for member in members:
            self.flat[member] += range(base, base + stop - start)
        return len(self.parents) - 1

    def grow(self) -> None:
        """Lay down all rows, a span before those that continue it."""
        # Rows that agree on their first ``known`` tokens, of which ``start`` are laid down and end in ``parent``.
        stack = [(list(range(len(self.rows))), 0, -1, 0)]
        while stack:
            members, start, parent, known = stack.pop()
            alone = len(members) == 1
            rows = [self.keys[m] for m in members]
            common = len(rows[0]) if alone else _common_prefix(rows, known)
            if common - start >= (1 if alone else _MIN_SHARED):
                parent = self.span(members, start, common, parent)
                start = common
            if alone:
                continue
            branches: dict[int, list[int]] = {}
            for m, ids in zip(members, rows, strict=True):
                branches.setdefault(ids[common] if len(ids) > common else -1 - m, []).append(m)
            stack += [(branch, start, parent, common) for branch in reversed(branches.values())]


def _common_prefix(rows: list[list[int]], known: int) -> int:
    shortest, longest = min(rows), max(rows)
    limit = min(len(shortest), len(longest))
    while known < limit and shortest[known] == longest[known]:
        known += 1
    return known


def _images(tree: _Tree) -> tuple[list[ImageSpan], dict[str, Picture]]:
    """Where images were laid down, each once however many rows share it, and the images."""
    found = {}
    for row, flat in zip(tree.rows, tree.flat, strict=True):
        for image in row.images:
            at = flat[image.start]
            found[at] = replace(image, start=at, stop=at + image.stop - image.start)
    pictures = {image.hash: row.pictures[image.hash] for row in tree.rows for image in row.images}
    return [found[at] for at in sorted(found)], pictures


def _micro_batch(rows: Sequence[TrainRow], share: bool) -> MicroBatch:
    tree = _Tree(rows)
    if share:
        tree.grow()
    else:
        for i, row in enumerate(rows):
            tree.span([i], 0, len(row.ids), -1)
    at: list[int] = []
    targets: list[int] = []
    old: list[float] = []
    advantages: list[float] = []
    trajectory: list[int] = []
    turns: list[int] = []
    for row, flat in zip(rows, tree.flat, strict=True):
        for j in np.flatnonzero(row.mask).tolist():
            at.append(flat[j - 1])
            targets.append(row.ids[j])
            old.append(row.logps[j])
            advantages.append(row.advantages[j])
            trajectory.append(row.trajectory)
            turns.append(row.turns[j] if row.turns else 0)
    images, pictures = _images(tree)
    positions = np.concatenate(tree.positions, 1) if tree.grid else tree.positions
    return MicroBatch(
        ids=torch.tensor(tree.ids, dtype=torch.long),
        positions=torch.as_tensor(positions, dtype=torch.long),
        layout=Packed(tree.cu, tree.parents),
        at=torch.tensor(at, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        old_logp=torch.tensor(old, dtype=torch.float32),
        advantages=torch.tensor(advantages, dtype=torch.float32),
        trajectory=torch.tensor(trajectory, dtype=torch.long),
        turns=torch.tensor(turns, dtype=torch.long),
        images=images,
        pictures=pictures,
    )
