"""An engine that samples otherwise than the trainer's model would: measured, corrected, refused."""

import math
import warnings

import pytest
import torch
from agentgym.trainers import grpo

from agentgym.errors import AgentGymError, ConfigError
from agentgym.learner.learner import OptimConfig
from agentgym.learner.logprobs import score, token_logprobs
from agentgym.learner.mismatch import MismatchConfig, importance, measure
from agentgym.learner.pack import pack, rows_of
from agentgym.types import Segment, Trajectory, Turn

VOCAB = 50


def sampled(model, shifts, seed=0):
    """A trajectory of two turns in two segments; the engine's log-probabilities are off by ``shifts``, one a token."""
    generator = torch.Generator().manual_seed(seed)
    segments, turns, shifts = [], [], iter(shifts)
    for number in range(2):
        ids = torch.randint(0, VOCAB, (12,), generator=generator).tolist()
        segment = Segment()
        segment.append_context(ids[:8])
        logps = [p + next(shifts) for p in score(model, ids, 8)]
        segment.append_sampled(ids[8:], logps, 0)
        segments.append(segment)
        turns.append(Turn("", number, 0, 8, 12, "", ""))
    return Trajectory("test/Env-v0", 0, segments=segments, turns=turns)


SHIFTS = [0.0, -0.1, 0.4, -1.0, 1.5, 0.2, -0.6, 0.05]
"""log μ − log π_old, so that ρ = e^−shift."""


def run(model, trajectories, **settings):
    config = MismatchConfig(**{"warn": 10.0, "refuse": 10.0, **settings})
    return measure(model, trajectories, OptimConfig(), 1.0, config)


def test_weights_by_hand():
    log_ratio = torch.tensor([0.0, math.log(3), -math.log(3), 0.5, math.log(2)], dtype=torch.float64)
    truncated = importance(log_ratio, MismatchConfig(correct="truncated", cap=2.0))
    torch.testing.assert_close(truncated.tolist(), [1.0, 2.0, 1 / 3, math.exp(0.5), 2.0])
    masked = importance(log_ratio, MismatchConfig(correct="masked", cap=2.0))
    torch.testing.assert_close(masked.tolist(), [1.0, 0.0, 0.0, math.exp(0.5), 2.0])
    assert importance(log_ratio, MismatchConfig()).tolist() == [1.0] * 5


def test_what_is_measured(models):
    model = models(vocab_size=VOCAB)
    metrics = run(model, [sampled(model, SHIFTS)])
    k3 = [math.exp(-s) + s - 1 for s in SHIFTS]
    assert metrics["policy/mismatch_kl"] == pytest.approx(sum(k3) / 8, abs=1e-5)
    assert metrics["policy/mismatch_max"] == pytest.approx(math.exp(1.5), rel=1e-5)
    same = run(model, [sampled(model, [0.0] * 8)])
    assert same["policy/mismatch_kl"] < 1e-10
    assert same["policy/mismatch_max"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("correct", ["none", "truncated", "masked"])
def test_the_gradient_of_a_correction_by_hand(models, correct):
    """Before the update π_θ is π_old: the gradient of a token is w A ∇ log π, or ρ A ∇ log π if μ stands for π_old."""
    model, advantages = models(vocab_size=VOCAB), [0.7, -1.3]
    trajectories = [sampled(model, SHIFTS, 0), sampled(model, SHIFTS[::-1], 1)]
    metrics = run(model, trajectories, correct=correct, cap=1.4)
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        for segment in trajectory.segments:
            segment.advantages = [advantage * m for m in segment.mask]
    cfg = grpo.Config(algo=grpo.Algo(clip_low=0.99, clip_high=100.0, aggregation="token_mean"), groups=1)
    (batch,) = grpo.batches(trajectories, cfg)
    loss, _ = grpo.make_loss(cfg.algo, None, 1.0)(token_logprobs(model, batch), batch)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)

    ratios = [math.exp(-s) for s in (*SHIFTS, *SHIFTS[::-1])]
    limit = 1.4
    weights = {
        "none": ratios,
        "truncated": [min(r, limit) for r in ratios],
        "masked": [r if 1 / limit <= r <= limit else 0.0 for r in ratios],
    }[correct]
    (plain,) = pack([row for i, t in enumerate(trajectories) for row in rows_of(t, i)], 10**9)
    logp = token_logprobs(model, plain).logp
    by_hand = torch.tensor(weights) * torch.tensor([0.7] * 8 + [-1.3] * 8)
    (-(by_hand * logp).sum() / 16).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    if correct != "none":
        assert metrics["policy/mismatch_weight"] == pytest.approx(sum(weights) / 16, rel=1e-4)
        assert 0.0 in weights or max(weights) == limit, "nothing was corrected"


def test_a_run_warns_and_then_refuses(models):
    model = models(vocab_size=VOCAB)
    trajectories = [sampled(model, SHIFTS)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, trajectories, warn=0.01)
    assert "mismatch.warn=0.01" in str(caught[0].message)
    with pytest.raises(AgentGymError, match=r"0\.22 nats a token \(mismatch.refuse is 0.1\).*dtype"):
        run(model, trajectories, warn=0.01, refuse=0.1)
    trajectories[0].segments[0].logps[9] = math.inf
    with pytest.raises(AgentGymError, match="another distribution"):
        run(model, trajectories)


@pytest.mark.parametrize(
    ("values", "message"), [({"cap": 1.0}, "mismatch.cap"), ({"warn": 0.2}, "mismatch.warn"), ({"warn": 0.0}, "warn")]
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        MismatchConfig(**values)
