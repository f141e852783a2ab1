"""Formulas in the plainest code, to compare trainers with."""

from __future__ import annotations

import torch


def head_by_hand(weights, x):
    """A value head: linear layers without bias, ReLU between."""
    for w in weights[:-1]:
        x = torch.relu(x @ w.T)
    return (x @ weights[-1].T)[:, 0]


def gae_by_hand(rewards, values, last, gamma, lam, gamma_token, lam_token):
    """Advantages of tokens; ``last`` says which end a turn."""
    out, running, following = [], 0.0, 0.0
    for r, v, end in zip(rewards[::-1], values[::-1], last[::-1], strict=True):
        g, decay = (gamma, lam) if end else (gamma_token, lam_token)
        running = r + g * following - v + g * decay * running
        following = v
        out.append(running)
    return out[::-1]
