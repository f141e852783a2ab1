"""However rows are laid out, loss and gradient are the same; only what the policy sampled is trained."""

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentgym.learner import logprobs
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.losses import AGGREGATIONS, clipped_surrogate, gspo_surrogate, sft_loss, token_weights
from agentgym.learner.pack import MicroBatch, TrainRow, pack, rows_of
from agentgym.types import Edit, Segment, Trajectory, Turn

VOCAB = 40
TIGHT = 1e-10
"""Largest relative difference in float64. The contract asks for 1e-6; rounding alone gives about 1e-15."""
SINGLE = 2e-5
"""The same in float32, where rounding alone gives about 1e-6."""
WHOLE = 10**9


def build_trajectory(rng, prompt, shape, alphabet):
    """An episode that starts with ``prompt``; ``shape`` holds context tokens, sampled tokens, and where to fork."""
    trajectory = Trajectory("test/Env-v0", 0, segments=[Segment()])
    trajectory.segments[0].append_context(list(prompt))
    for n, (context, sampled, fork) in enumerate(shape):
        segment = trajectory.segments[-1]
        if fork is not None and n:
            kept = int(fork * len(segment))
            new = Segment(edit=Edit(n, kept, len(segment) - kept, "", ""))
            new.append_context(segment.ids[:kept])
            trajectory.segments.append(new)
            segment = new
        prompt_start = len(segment)
        segment.append_context(rng.integers(1, alphabet, context).tolist())
        start = len(segment)
        segment.append_sampled(rng.integers(1, alphabet, sampled).tolist(), (-3 * rng.random(sampled)).tolist(), n)
        where = (len(trajectory.segments) - 1, prompt_start, start, len(segment))
        trajectory.turns.append(Turn("", *where, text="", action=""))
    for segment in trajectory.segments:
        segment.append_context(rng.integers(1, alphabet, 2).tolist())
        segment.advantages = [float(a) * m for a, m in zip(rng.normal(size=len(segment)), segment.mask, strict=True)]
    return trajectory


SHAPE = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.none() | st.floats(0, 1)),
    min_size=1,
    max_size=4,
)


@st.composite
def batches(draw):
    """Groups whose members share a prompt, copies of members, and members that are the beginning of another."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    alphabet = draw(st.sampled_from([2, 3, VOCAB]))  # few letters: rows agree by chance and part late
    trajectories = []
    for _ in range(draw(st.integers(1, 2))):
        prompt = rng.integers(1, alphabet, draw(st.integers(1, 40))).tolist()
        for shape in draw(st.lists(SHAPE, min_size=1, max_size=3)):
            trajectories.append(build_trajectory(rng, prompt, shape, alphabet))
        for kind in draw(st.lists(st.sampled_from(["twin", "beginning"]), max_size=2)):
            twin = copy.deepcopy(trajectories[-1])
            if kind == "beginning" and len(twin.segments) == 1 and len(twin.turns) > 1:
                stop = twin.turns[-2].stop
                twin.turns.pop()
                old = twin.segments[0]
                twin.segments = [Segment(old.ids[:stop], old.mask[:stop], old.logps[:stop], old.versions[:stop])]
                twin.segments[0].advantages = old.advantages[:stop]
            trajectories.append(twin)
    return Batch(trajectories)


class Batch(list):
    """Trajectories that print short."""

    def __repr__(self):
        return "\n".join(
            f"{i}: {list(zip(s.ids, s.mask, strict=True))}" for i, t in enumerate(self) for s in t.segments
        )


def weigh(micro, n, mode):
    """Weights over the whole batch, as every trainer sets them."""
    weights = token_weights(torch.cat([m.trajectory for m in micro]), n, mode, 64)
    for batch, part in zip(micro, weights.split([len(m.targets) for m in micro]), strict=True):
        batch.weights = part


def token_losses(kind, out, batch):
    if kind == "gspo":
        return gspo_surrogate(out.logp, batch.old_logp, batch.advantages, batch.trajectory, 0.2, 0.3)
    if kind == "sft":
        return sft_loss(out.logp) + 0.01 * out.entropy
    return clipped_surrogate(out.logp, batch.old_logp, batch.advantages, dual_clip=3.0)


def loss_and_gradient(model, micro, kind):
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in micro:
        loss = (batch.weights * token_losses(kind, token_logprobs(model, batch), batch)).sum()
        loss.backward()
        total += float(loss.detach())
    gradient = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
    return total, gradient


def train(model, trajectories, kind="ppo", mode="token_mean", per_turn=False, share=True, budget=WHOLE):
    rows = [row for i, t in enumerate(trajectories) for row in rows_of(t, i, per_turn)]
    micro = pack(rows, budget, share)
    weigh(micro, len(trajectories), mode)
    return loss_and_gradient(model, micro, kind)


def assert_same(one, two, bound):
    scale = max(float(one[1].norm()), 1e-3)
    assert abs(one[0] - two[0]) <= bound * max(abs(one[0]), 1e-2)
    assert float((one[1] - two[1]).norm()) <= bound * scale


@pytest.fixture(scope="module")
def doubles(models):
    return {kind: models(kind, VOCAB, dtype=torch.float64) for kind in ("llama", "qwen2", "qwen3")}


@given(batches(), st.sampled_from(["llama", "qwen2", "qwen3"]), st.sampled_from(["ppo", "gspo", "sft"]), st.data())
def test_layouts_are_equivalent(doubles, trajectories, architecture, kind, data):
    mode = data.draw(st.sampled_from(AGGREGATIONS))
    model = doubles[architecture]
    plain = train(model, trajectories, kind, mode, per_turn=True, share=False)
    assert_same(plain, train(model, trajectories, kind, mode, per_turn=False, share=False), TIGHT)
    assert_same(plain, train(model, trajectories, kind, mode, per_turn=False, share=True), TIGHT)
    assert_same(plain, train(model, trajectories, kind, mode, per_turn=True, share=True), TIGHT)


@given(batches(), st.sampled_from(["ppo", "gspo", "sft"]), st.integers(1, 200), st.booleans(), st.booleans())
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_micro_batches_add_up_to_one_batch(doubles, mode, trajectories, kind, budget, per_turn, share):
    whole = train(doubles["llama"], trajectories, kind, mode)
    assert_same(whole, train(doubles["llama"], trajectories, kind, mode, per_turn, share, budget), TIGHT)


@given(batches())
def test_layouts_are_equivalent_in_single_precision(models, trajectories):
    model = models("qwen3", VOCAB)
    plain = train(model, trajectories, "gspo", "seq_mean_token_mean", per_turn=True, share=False)
    for per_turn, share, budget in ((False, False, WHOLE), (False, True, WHOLE), (True, True, 50)):
        other = train(model, trajectories, "gspo", "seq_mean_token_mean", per_turn, share, budget)
        assert_same(plain, other, SINGLE)


@given(batches(), st.sampled_from(["ppo", "gspo", "sft"]), st.booleans(), st.booleans())
def test_what_was_not_sampled_is_not_trained(doubles, trajectories, kind, per_turn, share):
    """Whatever stands beside tokens with mask 0, and behind the last sampled one, makes no difference at all."""
    model = doubles["llama"]
    clean = train(model, trajectories, kind, per_turn=per_turn, share=share)
    dirty = copy.deepcopy(trajectories)
    for segment in (s for t in dirty for s in t.segments):
        for j, m in enumerate(segment.mask):
            if not m:
                segment.logps[j], segment.advantages[j], segment.versions[j] = float("nan"), float("inf"), 9
        last = max((j for j, m in enumerate(segment.mask) if m), default=-1)
        segment.ids[last + 1 :] = [VOCAB - 1] * (len(segment) - last - 1) if last >= 0 else segment.ids[last + 1 :]
    again = train(model, dirty, kind, per_turn=per_turn, share=share)
    assert again[0] == clean[0]
    assert torch.equal(again[1], clean[1])


@given(batches(), st.data())
def test_every_trained_token_has_its_own_part_in_the_gradient(doubles, trajectories, data):
    """With the mask of one turn taken away the gradient is that of the others alone."""
    model = doubles["llama"]
    i = data.draw(st.integers(0, len(trajectories) - 1))
    turn = data.draw(st.sampled_from(trajectories[i].turns))
    without, alone = copy.deepcopy(trajectories), copy.deepcopy(trajectories)
    without[i].segments[turn.segment].mask[turn.start : turn.stop] = [0] * (turn.stop - turn.start)
    for k, s in ((k, s) for k, t in enumerate(alone) for s in range(len(t.segments))):
        mask = alone[k].segments[s].mask
        mine = (k, s) == (i, turn.segment)
        alone[k].segments[s].mask = [m * int(mine and turn.start <= j < turn.stop) for j, m in enumerate(mask)]
    loss, gradient = train(model, trajectories, mode="const")
    parts = [train(model, part, mode="const") for part in (without, alone) if any(rows_of(t, 0) for t in part)]
    assert_same((loss, gradient), (sum(p[0] for p in parts), sum(p[1] for p in parts)), 1e-8)


def test_nothing_sampled_is_nothing_trained(doubles):
    empty = Trajectory("test/Env-v0", 0, segments=[Segment([1, 2, 3], [0, 0, 0], [0.0] * 3, [-1] * 3)])
    assert rows_of(empty, 0) == rows_of(empty, 0, per_turn=True) == []
    assert pack([], 10) == []
    (batch,) = pack([TrainRow([1, 2, 3], [0, 0, 0], [0.0] * 3, [1.0] * 3, 0)], 10)
    assert len(batch.targets) == 0
    batch.weights = torch.zeros(0)
    loss, gradient = loss_and_gradient(doubles["llama"], [batch], "ppo")
    assert loss == 0
    assert not gradient.any()


def test_the_first_token_of_a_row_cannot_be_trained():
    trajectory = Trajectory("test/Env-v0", 0, segments=[Segment([1, 2], [1, 1], [0.0, 0.0], [0, 0])])
    with pytest.raises(ValueError, match="trajectory 3 trains the first token"):
        rows_of(trajectory, 3)


@st.composite
def train_rows(draw):
    """Rows in any order, also interleaved, over very few letters."""
    rows = []
    for index in draw(st.lists(st.integers(0, 4), min_size=1, max_size=12)):
        n = draw(st.integers(2, 40))
        letters = draw(st.integers(1, 3))
        ids = [1 + (j * j * letters) % letters for j in range(n)]
        if draw(st.booleans()):
            ids[draw(st.integers(0, n - 1))] = 7
        mask = [0, *draw(st.lists(st.integers(0, 1), min_size=n - 1, max_size=n - 1))]
        rows.append(TrainRow(ids, mask, [-float(j) for j in range(n)], [float(j) for j in range(n)], index))
    return rows


def unpacked(batch):
    """Every trained token with all it attends to, as the layout says."""
    ids, cu, parents = batch.ids.tolist(), batch.layout.cu, batch.layout.parents
    row_of = [r for r in range(len(parents)) for _ in range(cu[r], cu[r + 1])]
    for k, at in enumerate(batch.at.tolist()):
        row, seen = row_of[at], [*range(cu[row_of[at]], at + 1)]
        while (row := parents[row]) >= 0:
            seen = [*range(cu[row], cu[row + 1]), *seen]
        assert batch.positions[seen].tolist() == list(range(len(seen)))
        yield (
            int(batch.trajectory[k]),
            tuple(ids[j] for j in seen),
            int(batch.targets[k]),
            float(batch.old_logp[k]),
            float(batch.advantages[k]),
        )


@given(train_rows(), st.integers(1, 150), st.booleans())
def test_every_trained_token_is_packed_once_behind_its_own_past(rows, budget, share):
    expected = sorted(
        (r.trajectory, tuple(r.ids[:j]), r.ids[j], r.logps[j], r.advantages[j])
        for r in rows
        for j, m in enumerate(r.mask)
        if m
    )
    micro = pack(rows, budget, share)
    assert sorted(token for batch in micro for token in unpacked(batch)) == expected
    for batch in micro:
        assert batch.layout.cu[0] == 0
        assert batch.layout.cu[-1] == len(batch.ids) == len(batch.positions)
        assert all(parent < row for row, parent in enumerate(batch.layout.parents))
        assert all(b > a for a, b in zip(batch.layout.cu, batch.layout.cu[1:], strict=False))


@given(train_rows(), st.integers(1, 150), st.booleans())
def test_the_budget_holds_and_trajectories_stay_whole(rows, budget, share):
    for row in rows:
        row.mask[1:] = [1] * (len(row.mask) - 1)
    micro = pack(rows, budget, share)
    held = [sorted(set(batch.trajectory.tolist())) for batch in micro]
    assert sorted(i for h in held for i in h) == sorted({row.trajectory for row in rows})
    for batch, indices in zip(micro, held, strict=True):
        size = sum(len(row.ids) for row in rows if row.trajectory in indices)
        assert size <= budget or len(indices) == 1
        assert len(batch.ids) == size if not share else len(batch.ids) <= size
    if budget >= sum(len(row.ids) for row in rows):
        assert len(micro) == 1


def test_a_shared_prompt_is_computed_once():
    prompt = list(range(1, 31))
    rows = [TrainRow([*prompt, 5 + i, 6], [0] * 30 + [1, 1], [0.0] * 32, [0.0] * 32, i) for i in range(8)]
    assert len(pack(rows, WHOLE)[0].ids) == 30 + 8 * 2
    assert len(pack(rows, WHOLE, share_prefixes=False)[0].ids) == 8 * 32
    assert len(pack([rows[0]] * 8, WHOLE)[0].ids) == 32
    chain = [TrainRow(prompt[:n], [0] * (n - 1) + [1], [0.0] * n, [0.0] * n, 0) for n in (16, 20, 30)]
    assert len(pack(chain, WHOLE)[0].ids) <= 16 + 4 + 14


def test_a_long_chain_of_prefixes_needs_no_deep_stack():
    n = 400
    ids = [1 + j % 7 for j in range(16 + 16 * n)]
    rows = [TrainRow(ids[: 16 * (k + 2)], [0, *[1] * (16 * (k + 2) - 1)], ids, ids, 0) for k in range(n)]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        (batch,) = pack(rows, WHOLE)
    finally:
        sys.setrecursionlimit(limit)
    assert len(batch.ids) == len(ids)


def test_logits_are_made_in_chunks_without_a_difference(doubles, monkeypatch):
    rng = np.random.default_rng(0)
    trajectories = [build_trajectory(rng, [1, 2, 3], [(2, 5, None), (3, 4, None)], VOCAB) for _ in range(3)]
    whole = train(doubles["llama"], trajectories, "sft")
    monkeypatch.setattr(logprobs, "CHUNK", 4)
    assert_same(whole, train(doubles["llama"], trajectories, "sft"), TIGHT)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_log_probabilities_and_entropy_are_those_of_the_softmax(models, temperature):
    model, stock = (models("qwen2", VOCAB, dtype=torch.float64, ready=ready) for ready in (True, False))
    ids = np.random.default_rng(1).integers(1, VOCAB, 30).tolist()
    (batch,) = pack([TrainRow(ids, [0, *[1] * 29], [0.0] * 30, [0.0] * 30, 0)], WHOLE)
    with torch.no_grad():
        out = token_logprobs(model, batch, temperature)
        expected = (stock(torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(-1)
    assert isinstance(out, TokenOutput)
    torch.testing.assert_close(out.logp, expected[range(29), ids[1:]], rtol=0, atol=1e-10)
    entropy = torch.distributions.Categorical(logits=expected).entropy()
    torch.testing.assert_close(out.entropy, entropy, rtol=0, atol=1e-10)


def test_moving_a_micro_batch_keeps_everything():
    (batch,) = pack([TrainRow([1, 2, 3], [0, 1, 1], [0.0, -1.0, -2.0], [0.0, 1.0, 2.0], 0)], 10)
    moved = batch.to(torch.device("cpu"))
    assert moved.layout is batch.layout
    for f in dataclasses.fields(MicroBatch):
        if f.name != "layout":
            a, b = getattr(moved, f.name), getattr(batch, f.name)
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    assert (moved.batch_trajectories, moved.batch_tokens) == (1, 2)


@pytest.mark.parametrize("per_turn", [False, True])
def test_a_token_knows_its_turn_and_the_size_of_the_whole_batch(per_turn):
    spans = [(0, 2, 4), (0, 5, 6), (1, 3, 6), (1, 8, 9)]
    segments = [Segment([0] * 6, [0] * 6, [0.0] * 6), Segment([0] * 9, [0] * 9, [0.0] * 9)]
    turns = []
    for number, (segment, start, stop) in enumerate(spans):
        for j in range(start, stop):
            segments[segment].ids[j], segments[segment].mask[j] = 10 + number, 1
        turns.append(Turn("o", segment, start, start, stop, "t", "a"))
    trajectories = [Trajectory("e", seed, segments=segments, turns=turns) for seed in range(3)]
    batches = pack([r for i, t in enumerate(trajectories) for r in rows_of(t, i, per_turn)], 20)
    assert len(batches) == 3
    for batch in batches:
        assert batch.turns.tolist() == (batch.targets - 10).tolist() == [0, 0, 1, 2, 2, 2, 3]
        assert (batch.batch_trajectories, batch.batch_tokens) == (3, 21)
