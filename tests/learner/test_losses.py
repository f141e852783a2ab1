"""Worked numbers, gradients by hand, and one batch against its micro-batches."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from agentgym.errors import ConfigError
from agentgym.learner.losses import (
    AGGREGATIONS,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    entropy_from_logits,
    gspo_surrogate,
    kl_k1,
    kl_k2,
    kl_k3,
    reinforce_loss,
    sequence_log_ratio,
    sequence_ratio,
    sft_loss,
    token_ratio,
    token_weights,
)

torch.set_num_threads(1)
F64 = torch.float64


def t(*values, grad=False):
    return tensor(values, dtype=F64, requires_grad=grad)


def close(actual, expected, atol=1e-4):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=0, atol=atol)


def gradient(loss, at):
    return torch.autograd.grad(loss.sum(), at)[0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("token_mean", 1 / 3), ("seq_mean_token_mean", 0.5), ("seq_mean_token_sum", 1.0), ("const", 0.1)],
)
def test_aggregators(mode, expected):
    seq, loss = tensor([0, 0, 1, 1, 1, 1]), tensor([1.0, 1, 0, 0, 0, 0])
    weights = token_weights(seq, 2, mode, max_length=10)
    close((weights * loss).sum(), expected)
    order = tensor([5, 0, 3, 1, 2, 4])
    close(token_weights(seq[order], 2, mode, max_length=10), weights[order], 0)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_a_sequence_without_tokens_counts_but_is_not_nan(mode):
    seq = tensor([0, 0, 2])  # sequence 1 has no trained token
    total = token_weights(seq, 3, mode, max_length=10).sum()
    close(
        total,
        {"token_mean": 1.0, "seq_mean_token_mean": 2 / 3, "seq_mean_token_sum": 1.0, "const": 0.1}[mode],
    )
    for n in (0, 2):
        empty = token_weights(seq[:0], n, mode, max_length=10)
        assert empty.shape == (0,)
        assert empty.sum() == 0


def test_wrong_aggregation():
    seq = tensor([0, 1])
    with pytest.raises(ConfigError, match="did you mean token_mean"):
        token_weights(seq, 2, "tokenmean")
    for length in (None, 0):
        with pytest.raises(ValueError, match="max_length"):
            token_weights(seq, 2, "const", length)
    with pytest.raises(ValueError, match=r"0\.\.0"):
        token_weights(seq, 1, "token_mean")
    with pytest.raises(ValueError, match=r"0\.\.1"):
        token_weights(tensor([-1, 0]), 2, "token_mean")


def test_clipped_surrogate():
    ratio, advantages = t(1.0, 1.1, 1.5, 0.5, 1.5, 0.5), t(2, 2, 2, 2, -2, -2)
    loss = clipped_surrogate(ratio.log(), t(0, 0, 0, 0, 0, 0), advantages, 0.2, 0.28)
    close(loss, [-2, -2.2, -2.56, -1, 3, 1.6])


def test_clipped_surrogate_gradient():
    # d loss / d logp = -rho A where the clip does not bind, 0 where it does.
    ratio, advantages = t(1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 1.25), t(2, 2, 2, 2, -2, -2, 3)
    logp = ratio.log().requires_grad_()
    grad = gradient(clipped_surrogate(logp, torch.zeros_like(ratio), advantages, 0.2, 0.28), logp)
    close(grad, [-2, -2.2, 0, -1, 3, 0, -3.75])


def test_dual_clip():
    logp, advantages = t(5, 2, 5, 0.5).log().requires_grad_(), t(-1, -1, 1, -1)
    loss = clipped_surrogate(logp, t(0, 0, 0, 0), advantages, 0.2, 0.2, dual_clip=3.0)
    close(loss, [3, 2, -1.2, 0.8])
    close(gradient(loss, logp), [0, 2, 0, 0])
    with pytest.raises(ValueError, match="dual_clip"):
        clipped_surrogate(logp, logp, advantages, dual_clip=1.0)


def test_ratio_stays_finite():
    ratio = token_ratio(tensor([500.0, -500.0]), tensor([0.0, 0.0]))
    close(ratio.log(), [20, -20])
    assert gspo_surrogate(tensor([500.0]), tensor([0.0]), tensor([-1.0]), tensor([0])).isfinite().all()
    assert kl_k3(tensor([-500.0]), tensor([0.0])).isfinite().all()


def test_old_logp_and_advantages_get_no_gradient():
    old, advantages, seq = t(0, 0.1, grad=True), t(1, 1, grad=True), tensor([0, 0])
    logp = t(0, 0, grad=True)
    losses = (
        clipped_surrogate(logp, old, advantages),
        gspo_surrogate(logp, old, advantages, seq),
        reinforce_loss(logp, advantages) + kl_k1(logp, old) + kl_k2(logp, old) + kl_k3(logp, old),
    )
    for loss in losses:
        loss.sum().backward()
    assert old.grad is None
    assert advantages.grad is None
    assert logp.grad is not None


def test_sequence_ratio():
    delta = t(0.1, -0.2, 0.4)
    close(sequence_log_ratio(delta, torch.zeros_like(delta), tensor([0, 0, 0])).exp(), 1.105171)
    mixed = sequence_log_ratio(t(0.1, 7, -0.2, 9, 0.4), t(0, 0, 0, 0, 0), tensor([4, 1, 4, 1, 4]))
    close(mixed, [0.1, 8, 0.1, 8, 0.1])
    assert sequence_log_ratio(delta[:0], delta[:0], tensor([], dtype=torch.long)).shape == (0,)


def test_gspo_equals_the_sequence_form():
    delta, seq = t(0.1, -0.2, 0.4, -0.3, 0.2, 0.9), tensor([0, 0, 0, 1, 1, 2])
    per_sequence = t(2.0, -1.5, 1.0)
    eps_low, eps_high = 0.2, 0.2  # sequence 2 (s = e^.9) is clipped, 0 (s = e^.1) and 1 (s = e^-.05) are not

    logp = delta.clone().requires_grad_()
    weights = token_weights(seq, 3, "seq_mean_token_mean")
    loss = gspo_surrogate(logp, torch.zeros_like(delta), per_sequence[seq], seq, eps_low, eps_high)
    token_form = (weights * loss).sum()

    direct = delta.clone().requires_grad_()
    s = torch.stack([direct[seq == i].mean() for i in range(3)]).exp()
    clipped = s.clamp(1 - eps_low, 1 + eps_high)
    sequence_form = -torch.minimum(s * per_sequence, clipped * per_sequence).mean()

    close(token_form, sequence_form.detach(), 1e-7)
    close(gradient(token_form, logp), gradient(sequence_form, direct), 1e-7)
    by_hand = [-math.exp(0.1) * 2 / 9] * 3 + [math.exp(-0.05) * 1.5 / 6] * 2 + [0]
    close(gradient((weights * gspo_surrogate(logp, delta * 0, per_sequence[seq], seq, 0.2, 0.2)), logp), by_hand)


def test_gspo_ratio_is_far_tighter_than_the_token_ratio():
    logp, old, seq = t(0.0005, 0.0005, grad=True), t(0, 0), tensor([0, 0])
    assert gradient(gspo_surrogate(logp, old, t(1, 1), seq), logp).abs().sum() == 0
    assert gradient(gspo_surrogate(logp, old, t(-1, -1), seq), logp).abs().sum() > 0
    assert clip_fraction(sequence_ratio(logp, old, seq), t(1, 1), 3e-4, 4e-4) == 1
    assert clip_fraction(token_ratio(logp, old), t(1, 1), 0.2, 0.2) == 0


def test_clip_fraction():
    ratio, advantages = t(1.5, 0.5, 1.5, 0.5, 1.0, 4.0), t(1, 1, -1, -1, 1, -1)
    close(clip_fraction(ratio, advantages, 0.2, 0.2), 2 / 6)
    close(clip_fraction(ratio, advantages, 0.2, 0.2, dual_clip=3.0), 3 / 6)
    assert clip_fraction(ratio[:0], advantages[:0], 0.2, 0.2) == 0


def test_kl_estimators():
    logp, ref = t(0.5).log(), t(0.25).log()
    close(kl_k1(logp, ref), 0.693147)
    close(kl_k2(logp, ref), 0.240227)
    close(kl_k3(logp, ref), 0.193147)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=8))
def test_kl_gradients(pairs):
    logp, ref = (tensor(x, dtype=F64) for x in zip(*pairs, strict=True))
    logp.requires_grad_()
    close(gradient(kl_k1(logp, ref), logp), 1.0, 1e-9)
    close(gradient(kl_k2(logp, ref), logp), (logp - ref).detach(), 1e-9)
    close(gradient(kl_k3(logp, ref), logp), 1 - (ref - logp).detach().exp(), 1e-9)
    assert (kl_k3(logp, ref) >= 0).all()


def test_kl_estimators_agree_in_expectation():
    p, q = t(0.5, 0.3, 0.2), t(0.2, 0.2, 0.6)
    exact = (p * (p / q).log()).sum()
    close((p * kl_k1(p.log(), q.log())).sum(), exact, 1e-9)
    close((p * kl_k3(p.log(), q.log())).sum(), exact, 1e-9)


def test_entropy():
    logits = tensor([[0.0, 0, 0, 0], [100, 0, 0, 0], [0, 0, -torch.inf, -torch.inf]], requires_grad=True)
    entropy = entropy_from_logits(logits)
    close(entropy, [math.log(4), 0, math.log(2)])
    assert gradient(entropy, logits).isfinite().all()
    assert entropy_from_logits(logits.bfloat16()).dtype == torch.float32


def test_entropy_gradient():
    # d H / d z_j = -p_j (log p_j + H).
    logits = t(0.3, -1.2, 2.0).unsqueeze(0).requires_grad_()
    p = logits.detach().softmax(-1)
    entropy = entropy_from_logits(logits)
    close(entropy, -(p * p.log()).sum(-1), 1e-9)
    close(gradient(entropy, logits), -p * (p.log() + entropy.detach()), 1e-9)


def test_value_loss():
    values, old, targets = t(2, 0.3, 1.0, grad=True), t(0, 0, 0), t(3, 1, 0)
    close(clipped_value_loss(values, old, targets, 0.5), [3.125, 0.245, 0.5])
    close(gradient(clipped_value_loss(values, old, targets, 0.5), values), [0, -0.7, 1.0])
    close(clipped_value_loss(values, old, targets, None), [0.5, 0.245, 0.5])


def test_plain_losses():
    logp = t(-0.5, -2.0, grad=True)
    close(sft_loss(logp), [0.5, 2.0])
    close(reinforce_loss(logp, t(2, -1)), [1.0, -2.0])
    close(gradient(reinforce_loss(logp, t(2, -1)), logp), [-2, 1])


@pytest.mark.parametrize("mode", AGGREGATIONS)
@settings(deadline=None)
@given(data=st.data())
def test_micro_batches_add_up_to_the_batch(mode, data):
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6), label="trained tokens")
    cuts = data.draw(st.sets(st.integers(0, len(lengths))), label="micro-batches begin at sequence")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    seq = torch.repeat_interleave(torch.arange(len(lengths)), tensor(lengths))
    hidden, logits, noise, advantages = (
        torch.randn(len(seq), width, dtype=F64, generator=generator) for width in (3, 4, 1, 1)
    )
    head = torch.randn(3, 4, dtype=F64, generator=generator).requires_grad_()
    weights = token_weights(seq, len(lengths), mode, max_length=7)

    def loss(part):
        """Policy, sequence-ratio, KL and entropy terms of some tokens, under shared parameters."""
        rows = hidden[part] @ head
        logp = rows.log_softmax(-1)[:, 0]
        old = logits[part].log_softmax(-1)[:, 0]
        a = advantages[part, 0]
        total = clipped_surrogate(logp, old, a, dual_clip=3.0) + gspo_surrogate(logp, old, a, seq[part], 0.1, 0.1)
        total = total + kl_k3(logp, old + 0.1 * noise[part, 0]) - entropy_from_logits(rows)
        return (weights[part] * total).sum()

    whole = loss(slice(None))
    edges = [0, *sorted(cuts), len(lengths)]
    ends = [sum(lengths[:e]) for e in edges]
    parts = [loss(slice(a, b)) for a, b in itertools.pairwise(ends)]
    close(sum(p.detach() for p in parts), whole.detach(), 1e-6)
    accumulated = sum(gradient(p, head) for p in parts)
    close(accumulated, gradient(whole, head), 1e-6)
