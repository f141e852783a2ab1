"""Credit: from rewards to advantages, for the whole batch of trajectories at once. Numpy only.

Symbols: N trajectories, T tokens of one trajectory, K steps (turns) of one trajectory; m is 1 on the
tokens that the trained policy sampled and 0 on every other token; R is the return of a trajectory.
Statistics are taken over trajectories, never over the rows or tokens that they are stored in.

    GRPO        group_advantage(R, groups)                                          arXiv 2402.03300
    Dr.GRPO     group_advantage(R, groups, scale="none")                            arXiv 2503.20783
    RLOO        group_advantage(R, groups, center="loo", scale="none")              arXiv 2402.14740
    Lite PPO    group_advantage(R, groups, scale="batch")                           arXiv 2508.08221
    REINFORCE++ reinforce_pp(rewards, masks[, groups=groups])                       arXiv 2501.03262
    GiGPO       gigpo(rewards, observations, groups)                                arXiv 2505.10978
    PPO         turn_gae(...), then whiten(...)                                     arXiv 1506.02438
    POAD        turn_gae(..., gamma_token=1)                                        arXiv 2405.15821
    IGPO        trainers/igpo.py: group_advantage over turns, discounted_returns    arXiv 2510.14967
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentgym.errors import unknown

Floats = NDArray[np.float64]

CENTERS = ("group", "loo", "batch", "none")
SCALES = ("group", "batch", "batch_centered", "none")
NORMS = {"mean_norm": "none", "mean_std_norm": "group"}
EPISODE_MEANS = ("trajectory", "step")


def group_advantage(
    returns: ArrayLike,
    groups: Sequence[Hashable] | NDArray[np.integer],
    center: str = "group",
    scale: str = "group",
    ddof: int = 1,
    eps: float = 1e-6,
    floor: float = 0.0,
) -> Floats:
    """One advantage per trajectory: A_i = (R_i - b_i) / (s_i + eps).

    The baseline b_i is the mean of the group (`group`), of the other members of the group (`loo`), of the
    batch (`batch`) or 0 (`none`). The scale s_i is the standard deviation of the group's returns (`group`),
    of all returns of the batch (`batch`), of all centred returns R - b of the batch (`batch_centered`), or
    there is no division at all (`none`). Returns that do not differ carry no signal: where s_i is 0 the
    advantage is 0, and a group of one has the advantage 0 under `group` and `loo`.

    Args:
        returns: Return of each trajectory, [N], in units of reward.
        groups: Group key of each trajectory, [N].
        center: One of `group`, `loo`, `batch`, `none`.
        scale: One of `group`, `batch`, `batch_centered`, `none`.
        ddof: 1 divides the squares by n-1 (the deviation of one value is then taken as 0), 0 by n.
        eps: Added to the deviation, in units of reward.
        floor: Added to the variance, so that differences far below its root count for little.

    Returns:
        Advantages, [N]; without unit, or in units of reward where `scale` is `none`.

    Raises:
        ConfigError: `center` or `scale` is not one of the names above.
        ValueError: A return is not finite (the message names its trajectory), or lengths differ.

    Source: GRPO (2402.03300, outcome supervision), Dr.GRPO (2503.20783), RLOO (2402.14740); group mean with
    batch deviation is Lite PPO (2508.08221).
    """
    if center not in CENTERS:
        raise unknown("center", center, CENTERS)
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if ddof not in (0, 1):
        raise ValueError(f"ddof is {ddof}: must be 0 or 1")
    r = _floats(returns, "returns")
    g = _group_ids(groups, len(r))
    one = np.zeros(len(r), dtype=np.int64)
    if center == "none":
        centred = r
    elif center == "batch":
        centred = _centre(r, one)
    else:
        centred = _centre(r, g)
    if center == "loo":
        n = np.bincount(g)[g] if len(g) else g
        centred = centred * n / np.maximum(n - 1, 1)
    if scale == "none":
        return centred.copy()
    std = {
        "group": lambda: _std(r, g, ddof, floor),
        "batch": lambda: _std(r, one, ddof, floor),
        "batch_centered": lambda: _std(centred, one, ddof, floor),
    }[scale]()
    return np.where(std > 0, centred / (std + eps), 0.0)


def whiten(values: ArrayLike, mask: ArrayLike | None = None, eps: float = 1e-6) -> Floats:
    """Shift and scale values to mean 0 and deviation 1 over every m=1 entry: (x - mean) / (std + eps).

    Args:
        values: Any shape; entries with m=0 are ignored.
        mask: m, same shape; None keeps all.
        eps: Added to the deviation (ddof 1), in units of the values.

    Returns:
        Same shape, 0 where m=0; all 0 if the kept values are equal or fewer than two.

    Raises:
        ValueError: A kept value is not finite, or shapes differ.

    Source: REINFORCE++ (2501.03262, global advantage normalisation); PPO implementations.
    """
    x = np.asarray(values, dtype=np.float64)
    m = _mask(mask, x.shape)
    out = np.zeros_like(x)
    kept = _floats(x[m], "whitened values", "entry")
    out[m] = group_advantage(kept, np.zeros(len(kept), dtype=np.int64), "batch", "batch", eps=eps)
    return out


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None = None,
    gamma: float | ArrayLike = 1.0,
    lam: float | ArrayLike = 1.0,
    last_value: float = 0.0,
) -> tuple[Floats, Floats]:
    """Generalised advantage estimate over the m=1 tokens of one trajectory.

    With t' the next m=1 token after t: d_t = r_t + gamma_t V_t' - V_t and
    A_t = d_t + gamma_t lam_t A_t'. Tokens with m=0 are skipped, as if the trajectory did not hold them:
    both V_t' and A_t' are carried across them and nothing is discounted.

    `gamma` and `lam` may be given per token. POAD's backup is gamma = lam = 1 at every token of an action
    but its last, and the discount of the environment at the last one.

    Args:
        rewards: r, [T], in units of reward; each on an m=1 token.
        values: V, [T], in units of reward; ignored (may be NaN) where m=0.
        mask: m, [T]; None keeps all.
        gamma: Discount from each token to the next m=1 token, a number or [T].
        lam: Trace decay from each token to the next m=1 token, a number or [T].
        last_value: V after the last token: 0 at the end of the task, the critic's value at a truncation.

    Returns:
        Advantages A and value targets A + V, both [T] and 0 where m=0.

    Raises:
        ValueError: A reward lies on an m=0 token, where it would be lost; a reward or a kept value is not
            finite; or shapes differ.

    Source: GAE (1506.02438, eq. 16); per-token discounts: POAD (2405.15821, BAD).
    """
    r = _floats(rewards, "rewards", "token")
    v = np.asarray(values, dtype=np.float64)
    if v.shape != r.shape:
        raise ValueError(f"values have shape {v.shape}, rewards {r.shape}")
    m = _mask(mask, r.shape)
    lost = np.flatnonzero(~m & (r != 0))
    if len(lost):
        raise ValueError(f"the reward at token {lost[0]} lies on a token that is not trained (m=0)")
    kept_v = _floats(v[m], "values", "trained token")
    g, decay = (np.broadcast_to(np.asarray(x, dtype=np.float64), r.shape)[m].tolist() for x in (gamma, lam))
    out: list[float] = []
    next_value, running = last_value, 0.0
    for r_t, v_t, g_t, decay_t in zip(r[m][::-1].tolist(), kept_v[::-1].tolist(), g[::-1], decay[::-1], strict=True):
        running = r_t + g_t * next_value - v_t + g_t * decay_t * running
        next_value = v_t
        out.append(running)
    advantages, targets = np.zeros_like(r), np.zeros_like(r)
    advantages[m] = out[::-1]
    targets[m] = advantages[m] + kept_v
    return advantages, targets


def turn_gae(
    rewards: ArrayLike,
    values: ArrayLike,
    lengths: Sequence[int],
    gamma: float = 1.0,
    lam: float = 1.0,
    gamma_token: float = 1.0,
    lam_token: float = 1.0,
    last_value: float = 0.0,
) -> tuple[Floats, Floats]:
    """Generalised advantage estimate over the turns of a trajectory and the tokens inside them.

    The last token of a turn is followed by the environment: d = r + gamma V' - V, A = d + gamma lam A'. Inside a
    turn d = r + gamma_token V' - V, A = d + gamma_token lam_token A'. gamma_token = gamma is token-level PPO
    (NTPO in POAD's terms), gamma_token = 1 the backup with action decomposition (BAD).

    Args:
        rewards: r of each sampled token, [N], in units of reward; the environment's stand on the last token of a turn.
        values: V of the state before each sampled token, [N].
        lengths: Sampled tokens of each turn, [K], summing to N.
        gamma: Discount from one turn to the next.
        lam: Trace decay from one turn to the next.
        gamma_token: Discount between the tokens of a turn.
        lam_token: Trace decay between the tokens of a turn.
        last_value: V after the last token.

    Returns:
        Advantages A and value targets A + V, both [N].

    Raises:
        ValueError: The lengths do not sum to N, or a number is not finite.

    Source: GAE (1506.02438, eq. 16); POAD (2405.15821), recursion of its code.
    """
    n = len(np.asarray(values))
    if sum(lengths) != n or min(lengths, default=1) < 1:
        raise ValueError(f"turns of {list(lengths)} tokens do not make up {n} values")
    last = np.zeros(n, dtype=bool)
    last[np.cumsum(lengths, dtype=np.int64) - 1] = True
    return gae(rewards, values, None, np.where(last, gamma, gamma_token), np.where(last, lam, lam_token), last_value)


def discounted_returns(rewards: ArrayLike, gamma: float | ArrayLike = 1.0, mask: ArrayLike | None = None) -> Floats:
    """Discounted return-to-go G_t = r_t + gamma_t G_t', t' the next m=1 token (or step) after t.

    Args:
        rewards: r, [T], over tokens or over steps; each where m=1.
        gamma: Discount, a number or [T].
        mask: m, [T]; None keeps all.

    Returns:
        G, [T], in units of reward, 0 where m=0.

    Raises:
        ValueError: A reward lies where m=0 or is not finite, or shapes differ.

    Source: REINFORCE++ (2501.03262); GiGPO (2505.10978) over steps.
    """
    r = np.asarray(rewards, dtype=np.float64)
    return gae(r, np.zeros_like(r), mask, gamma, 1.0)[0]


def reinforce_pp(
    rewards: Sequence[ArrayLike],
    masks: Sequence[ArrayLike],
    gamma: float = 1.0,
    groups: Sequence[Hashable] | NDArray[np.integer] | None = None,
) -> list[Floats]:
    """REINFORCE++: discounted returns-to-go, whitened over all m=1 tokens of the batch.

    With `groups` it is REINFORCE++-baseline: the mean return of the group is first taken off the reward at
    the last m=1 token of each trajectory (gamma=1 and one reward at the end: R_i - mean_g on every token).

    Args:
        rewards: N arrays [T_i], in units of reward, with any KL penalty inside; each on an m=1 token.
        masks: N arrays m, [T_i].
        gamma: Discount from one m=1 token to the next.
        groups: Group keys, [N], or None for no baseline.

    Returns:
        N arrays of advantages, [T_i], 0 where m=0.

    Raises:
        ValueError: A reward is not finite or lies where m=0 (the message names the trajectory), or
            lengths differ.

    Source: REINFORCE++ (2501.03262).
    """
    rows = _rows(rewards, "rewards")
    if len(masks) != len(rows):
        raise ValueError(f"{len(masks)} masks for {len(rows)} trajectories")
    kept = [_mask(m, row.shape, f"mask of trajectory {i}") for i, (m, row) in enumerate(zip(masks, rows, strict=True))]
    if groups is not None:
        scores = np.array([row.sum() for row in rows])
        baseline = scores - group_advantage(scores, groups, "group", "none")
        rows = [row.copy() for row in rows]
        for row, m, b in zip(rows, kept, baseline, strict=True):
            row[np.flatnonzero(m)[-1:]] -= b
    returns = []
    for i, (row, m) in enumerate(zip(rows, kept, strict=True)):
        try:
            returns.append(discounted_returns(row, gamma, m))
        except ValueError as e:
            raise ValueError(f"trajectory {i}: {e}") from e
    if not rows:
        return []
    return _split(whiten(np.concatenate(returns), np.concatenate(kept)), rows)


def anchor_advantage(
    returns: ArrayLike,
    groups: Sequence[Hashable] | NDArray[np.integer],
    observations: Sequence[Hashable],
    norm: str = "mean_norm",
) -> Floats:
    """GiGPO's step advantage: compare steps of one task that were taken at the same observation.

    Steps of one group with an identical observation before the action form an anchor group;
    A^S = G - mean over it, divided by its deviation under `mean_std_norm`; a step alone gets 0.

    Args:
        returns: Discounted return-to-go G of each step of the batch, [S], in units of reward.
        groups: Task group of each step, [S].
        observations: What the agent saw before each step (or a digest of it), [S].
        norm: `mean_norm` or `mean_std_norm`.

    Returns:
        A^S, [S].

    Raises:
        ConfigError: `norm` is neither of the two.
        ValueError: A return is not finite, or lengths differ.

    Source: GiGPO (2505.10978, step-level relative advantage).
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if len(groups) != len(observations):
        raise ValueError(f"{len(groups)} group keys for {len(observations)} observations")
    anchors = list(zip(groups, observations, strict=True))
    return group_advantage(returns, anchors, "group", NORMS[norm])


def gigpo(
    rewards: Sequence[ArrayLike],
    observations: Sequence[Sequence[Hashable]],
    groups: Sequence[Hashable] | NDArray[np.integer],
    gamma: float = 0.95,
    step_weight: float = 1.0,
    norm: str = "mean_norm",
    episode_mean: str = "trajectory",
) -> list[Floats]:
    """GiGPO: A_k = A^E + w A^S_k for each step k of each trajectory.

    A^E is the trajectory's undiscounted return, centred (and scaled, under `mean_std_norm`) in its group.
    The paper counts each trajectory once in that mean (`trajectory`); the authors' code counts its return
    once per step, so that long episodes weigh more (`step`).

    Args:
        rewards: N arrays [K_i], the reward of each step.
        observations: N sequences [K_i], what the agent saw before each step (or a digest of it).
        groups: Task group of each trajectory, [N].
        gamma: Discount per step, in the step part only.
        step_weight: w.
        norm: `mean_norm` or `mean_std_norm`, for both parts.
        episode_mean: `trajectory` or `step`.

    Returns:
        N arrays of advantages, [K_i].

    Raises:
        ConfigError: `norm` or `episode_mean` is not one of the names above.
        ValueError: A reward is not finite or the lengths of a trajectory differ (the message names it).

    Source: GiGPO (2505.10978).
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if episode_mean not in EPISODE_MEANS:
        raise unknown("episode_mean", episode_mean, EPISODE_MEANS)
    rows = _rows(rewards, "rewards")
    if len(observations) != len(rows):
        raise ValueError(f"{len(observations)} observation sequences for {len(rows)} trajectories")
    for i, (row, seen) in enumerate(zip(rows, observations, strict=True)):
        if len(row) != len(seen):
            raise ValueError(f"trajectory {i} has {len(row)} rewards and {len(seen)} observations")
    g = _group_ids(groups, len(rows))
    if not rows:
        return []
    lengths = [len(row) for row in rows]
    scores, step_groups = np.array([row.sum() for row in rows]), np.repeat(g, lengths)
    if episode_mean == "trajectory":
        episode = np.repeat(group_advantage(scores, g, "group", NORMS[norm]), lengths)
    else:
        episode = group_advantage(np.repeat(scores, lengths), step_groups, "group", NORMS[norm])
    to_go = np.concatenate([discounted_returns(row, gamma) for row in rows])
    step = anchor_advantage(to_go, step_groups, [o for seen in observations for o in seen], norm)
    return _split(episode + step_weight * step, rows)


def overlong_penalty(length: ArrayLike, max_length: int, buffer: int) -> Floats:
    """DAPO's soft length penalty: 0 up to L-c, then linear over the buffer c, -1 from L on.

    Args:
        length: |o|, count of m=1 tokens, any shape.
        max_length: L, in tokens.
        buffer: c, in tokens.

    Returns:
        clip((L - c - |o|) / c, -1, 0), in units of reward, same shape.

    Raises:
        ValueError: `buffer` is not in 1..max_length.

    Source: DAPO (2503.14476, eq. 13; L=20480, c=4096).
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer}: must be from 1 to max_length ({max_length})")
    return np.clip((max_length - buffer - np.asarray(length, dtype=np.float64)) / buffer, -1.0, 0.0)


def _floats(values: ArrayLike, what: str, item: str = "trajectory") -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"{what} must have one dimension, got shape {x.shape}")
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        raise ValueError(f"{what} must be finite: {x[bad[0]]} at {item} {bad[0]}")
    return x


def _rows(values: Sequence[ArrayLike], what: str) -> list[Floats]:
    return [_floats(row, f"{what} of trajectory {i}", "position") for i, row in enumerate(values)]


def _mask(mask: ArrayLike | None, shape: tuple[int, ...], what: str = "mask") -> NDArray[np.bool_]:
    m = np.ones(shape, dtype=bool) if mask is None else np.asarray(mask).astype(bool)
    if m.shape != shape:
        raise ValueError(f"{what} has shape {m.shape}, expected {shape}")
    return m


def _group_ids(groups: Sequence[Hashable] | NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """Number the group keys 0, 1, ... in the order in which they first appear, [N]."""
    if len(groups) != n:
        raise ValueError(f"{len(groups)} group keys for {n} returns")
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(key, len(ids)) for key in groups], dtype=np.int64)


def _centre(x: Floats, g: NDArray[np.int64]) -> Floats:
    """Subtract the group mean, [N]; exactly 0 in a group whose values are all equal."""
    if not len(x):
        return x
    return np.where(_constant(x, g), 0.0, x - (np.bincount(g, x) / np.bincount(g))[g])


def _std(x: Floats, g: NDArray[np.int64], ddof: int, floor: float) -> Floats:
    """Standard deviation of each entry's group, [N]; exactly √floor in a group whose values are all equal."""
    if not len(x):
        return x
    return np.sqrt(np.bincount(g, _centre(x, g) ** 2) / np.maximum(np.bincount(g) - ddof, 1) + floor)[g]


def _constant(x: Floats, g: NDArray[np.int64]) -> NDArray[np.bool_]:
    low, high = np.full(g.max() + 1, np.inf), np.full(g.max() + 1, -np.inf)
    np.minimum.at(low, g, x)
    np.maximum.at(high, g, x)
    return (low == high)[g]


def _split(flat: Floats, rows: Sequence[Floats]) -> list[Floats]:
    return np.split(flat, np.cumsum([len(row) for row in rows])[:-1])
