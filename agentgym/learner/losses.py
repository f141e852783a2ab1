"""Policy, value and supervised losses, one number per trained token, and the weights that add them up.

Every tensor is flat: [N] holds the trained tokens (m=1) of a micro-batch, all sequences one after the
other, and no other token. A loss is `(token_weights * per_token_loss).sum()`. The weights are computed once
for the whole batch and sliced with the tokens, so gradient accumulation over any micro-batches equals
one big batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agentgym.errors import unknown

LOG_RATIO_LIMIT = 20.0
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const")


def token_weights(seq: Tensor, n_sequences: int, mode: str, max_length: int | None = None) -> Tensor:
    """Weight of each trained token of the whole batch, so that loss = sum of weight times token loss.

    With B sequences and |o_i| trained tokens in sequence i: `token_mean` 1/sum_j |o_j|;
    `seq_mean_token_mean` 1/(B |o_i|); `seq_mean_token_sum` 1/B; `const` 1/(B L_max). B counts every
    sequence of the batch, those without a trained token included.

    Args:
        seq: Index of the sequence of each token, [N] integers in 0..n_sequences-1.
        n_sequences: B.
        mode: One of `token_mean`, `seq_mean_token_mean`, `seq_mean_token_sum`, `const`.
        max_length: L_max in tokens, a constant of the run; only for `const`.

    Returns:
        Weights, [N] (default dtype), on the device of `seq`.

    Raises:
        ConfigError: `mode` is not one of the names above.
        ValueError: A sequence index is out of range, or `const` without a positive `max_length`.

    Source: token_mean DAPO (2503.14476, eq. 8); seq_mean_token_mean GRPO (2402.03300, eq. 3); const Dr.GRPO
    (2503.20783), here divided by B as well, unlike verl's.
    """
    if mode not in AGGREGATIONS:
        raise unknown("aggregation", mode, AGGREGATIONS)
    if mode == "const" and not (max_length and max_length > 0):
        raise ValueError("aggregation 'const' needs max_length > 0")
    if len(seq) and (int(seq.min()) < 0 or int(seq.max()) >= n_sequences):
        raise ValueError(f"sequence indices must lie in 0..{n_sequences - 1}")
    if mode == "token_mean":
        weight = 1.0 / max(len(seq), 1)
    elif mode == "const" and max_length:
        weight = 1.0 / (max(n_sequences, 1) * max_length)
    else:
        weight = 1.0 / max(n_sequences, 1)
    weights = torch.full(seq.shape, weight, device=seq.device)
    if mode == "seq_mean_token_mean":
        weights = weights / torch.bincount(seq, minlength=n_sequences)[seq]
    return weights


def turn_weights(seq: Tensor, turn: Tensor, n_sequences: int) -> Tensor:
    """Weight of each trained token in a mean over sequences of a mean over turns of a mean over tokens.

    With B sequences, T_j turns in sequence j and L_jt trained tokens in its turn t: 1/(B T_j L_jt). B counts every
    sequence of the batch, T_j the turns that hold a trained token.

    Args:
        seq: Index of the sequence of each token, [N] integers in 0..n_sequences-1.
        turn: Number of the turn of each token in its sequence, [N] integers from 0.
        n_sequences: B.

    Returns:
        Weights, [N] (default dtype).

    Source: EPO (2509.22576, eq. 2).
    """
    pairs, which, lengths = torch.stack((seq, turn)).unique(dim=1, return_inverse=True, return_counts=True)
    turns = torch.bincount(pairs[0], minlength=n_sequences)
    return 1.0 / (max(n_sequences, 1) * turns[seq] * lengths[which])


def token_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Importance ratio per token, exp(log p - log p_old), the log-ratio clamped to +-20.

    Args:
        logp: log p of the policy, [N].
        old_logp: log p_old of the policy that sampled, [N], constant.

    Returns:
        Ratio, [N].
    """
    return (logp - old_logp.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped loss per token: -min(rho A, clip(rho, 1-eps_low, 1+eps_high) A).

    With `dual_clip` c, where A < 0 the loss is at most -c A, so that one huge ratio cannot dominate.

    Args:
        logp: log p of the policy, [N], with gradient.
        old_logp: log p_old, [N].
        advantages: A, [N].
        eps_low: Clip range below 1.
        eps_high: Clip range above 1 (DAPO: 0.28).
        dual_clip: c > 1, or None for none.

    Returns:
        Loss, [N].

    Raises:
        ValueError: `dual_clip` is not above 1.

    Source: PPO (1707.06347, eq. 7); separate ranges DAPO (2503.14476, eq. 8); dual clip (1912.09729).
    """
    return _clipped(token_ratio(logp, old_logp), advantages, eps_low, eps_high, dual_clip)


def sequence_log_ratio(logp: Tensor, old_logp: Tensor, seq: Tensor) -> Tensor:
    """Mean log-ratio log s_i of each sequence, over its trained tokens, written at each of them.

    Args:
        logp: log p of the policy, [N].
        old_logp: log p_old, [N].
        seq: Index of the sequence of each token, [N] integers. All trained tokens of a sequence must be in
            the same call, since the mean is over those given.

    Returns:
        log s, [N], clamped to +-20.

    Source: GSPO (2507.18071, eq. 7).
    """
    delta = logp - old_logp.detach()
    n = int(seq.max()) + 1 if len(seq) else 0
    total = delta.new_zeros(n).index_add(0, seq, delta)
    mean = total / torch.bincount(seq, minlength=n).clamp(min=1)
    return mean[seq].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_ratio(logp: Tensor, old_logp: Tensor, seq: Tensor) -> Tensor:
    """Value s_i of GSPO's ratio with the gradient of each token's own log p: sg[s_i] p / sg[p].

    Args:
        logp: log p of the policy, [N], with gradient.
        old_logp: log p_old, [N].
        seq: Index of the sequence of each token, [N] integers; whole sequences only.

    Returns:
        Ratio, [N]; its derivative by logp at the same token is s_i.

    Source: GSPO (2507.18071, eq. 14, the token variant).
    """
    log_s = sequence_log_ratio(logp.detach(), old_logp, seq)
    return (log_s + logp - logp.detach()).exp()


def gspo_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    seq: Tensor,
    eps_low: float = 3e-4,
    eps_high: float = 4e-4,
) -> Tensor:
    """GSPO's clipped loss per token, with the sequence ratio in place of the token ratio.

    Averaged with `seq_mean_token_mean` its value and gradient are those of -min(s_i A_i, clip(s_i) A_i) per
    sequence; advantages that differ between the tokens of a sequence are allowed.

    Args:
        logp: log p of the policy, [N], with gradient.
        old_logp: log p_old, [N].
        advantages: A, [N].
        seq: Index of the sequence of each token, [N] integers; whole sequences only.
        eps_low: Clip range below 1.
        eps_high: Clip range above 1.

    Returns:
        Loss, [N].

    Source: GSPO (2507.18071, eqs. 5, 7, 13, 14).
    """
    return _clipped(sequence_ratio(logp, old_logp, seq), advantages, eps_low, eps_high, None)


def clip_fraction(
    ratio: Tensor,
    advantages: Tensor,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Fraction of tokens whose loss is clipped, that is, whose gradient is zero because of the ratio.

    Args:
        ratio: From `token_ratio` or `sequence_ratio`, [N].
        advantages: A, [N].
        eps_low: Clip range below 1.
        eps_high: Clip range above 1.
        dual_clip: c > 1, or None for none.

    Returns:
        Scalar in 0..1, without gradient; 0 for no tokens. To join micro-batches weigh it by their tokens.
    """
    up = (advantages > 0) & (ratio > 1 + eps_high)
    down = (advantages < 0) & (ratio < 1 - eps_low)
    if dual_clip is not None:
        down = down | ((advantages < 0) & (ratio > dual_clip))
    return (up | down).sum() / max(len(ratio), 1)


def reinforce_loss(logp: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE loss per token, -A log p, [N], from logp and A, both [N]; no ratio, for on-policy data.

    Source: Williams (1992); RLOO (2402.14740).
    """
    return -advantages.detach() * logp


def sft_loss(logp: Tensor) -> Tensor:
    """Negative log-likelihood per token in nats, -log p, [N], from logp [N]."""
    return -logp


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """DPO loss of each pair, −log σ(β [(log π − log π_ref)(y_w) − (log π − log π_ref)(y_l)]), ``[P]``.

    Args:
        chosen: log π(y_w|x), summed over the tokens of the response, ``[P]``.
        rejected: log π(y_l|x), ``[P]``.
        ref_chosen: log π_ref(y_w|x), ``[P]``.
        ref_rejected: log π_ref(y_l|x), ``[P]``.
        beta: β.

    Source: Rafailov et al. (2305.18290).
    """
    return -torch.nn.functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL estimate per token k1 = log p - log p_ref, [N], in nats; unbiased, may be negative.

    Its gradient has mean 0 under the policy: use it inside the reward or as a metric, not as a loss.
    Source: Schulman, "Approximating KL divergence" (2020).
    """
    return logp - ref_logp.detach()


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL estimate per token k2 = (log p_ref - log p)^2 / 2, [N], in nats squared; biased, low variance.

    Source: Schulman, "Approximating KL divergence" (2020).
    """
    return 0.5 * (logp - ref_logp.detach()).square()


def kl_k3(logp: Tensor, ref_logp: Tensor, limit: float | None = None) -> Tensor:
    """KL estimate per token k3 = e^x - x - 1, [N], in nats, with x = log p_ref - log p.

    Unbiased and never negative. x is cut off at 20 so that e^x stays finite; beyond it the gradient is 0. So it is
    where the estimate exceeds `limit`, which then stands for it (verl, and with it IGPO's code: 10).
    Source: Schulman, "Approximating KL divergence" (2020); GRPO (2402.03300, eq. 4).
    """
    x = (ref_logp.detach() - logp).clamp(max=LOG_RATIO_LIMIT)
    k3 = x.exp() - x - 1.0
    return k3 if limit is None else k3.clamp(max=limit)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats of the softmax over the last dimension, [N] from logits [N, V].

    Logits of -inf are tokens with probability 0. Half precision is computed in float32.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = 0.5) -> Tensor:
    """Value loss per token: half of max((V - y)^2, (clip(V, V_old - c, V_old + c) - y)^2).

    Args:
        values: V of the critic, [N], with gradient, in units of reward.
        old_values: V_old at the time of the rollout, [N].
        returns: Targets y, [N].
        clip: c, in units of reward, or None for no clipping.

    Returns:
        Loss, [N], in units of reward squared.

    Source: OpenAI baselines' PPO; the same term in verl, c=0.5.
    """
    returns = returns.detach()
    loss = (values - returns).square()
    if clip is not None:
        near = old_values.detach() + (values - old_values.detach()).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns).square())
    return 0.5 * loss


def _clipped(ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float, dual_clip: float | None) -> Tensor:
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}: must be above 1")
    advantages = advantages.detach()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
