"""Log-probabilities of the trained tokens of a packed micro-batch; logits are made at those tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from agentgym.learner.attention import Packed, hidden_states, logits_at
from agentgym.learner.pack import MicroBatch
from agentgym.learner.places import has_grid, positions_of
from agentgym.learner.vision import spliced
from agentgym.pictures import Picture
from agentgym.types import ImageSpan

CHUNK = 4096
"""Trained tokens whose logits are made at once."""


@dataclass
class TokenOutput:
    """What the model says of the N trained tokens.

    Attributes:
        logp: ``[N]`` log-probability, nats.
        entropy: ``[N]`` entropy of the whole distribution at that token, nats.
        hidden: ``[N, d]`` last hidden state of the token before it, what the model predicted it from.
    """

    logp: torch.Tensor
    entropy: torch.Tensor
    hidden: torch.Tensor


def read(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Last hidden states ``[T, d]`` of a micro-batch, its images looked at once each."""
    splice = spliced(model, batch.pictures, batch.images)
    return hidden_states(model, batch.ids, batch.positions, batch.layout, splice)


def token_logprobs(model: Any, batch: MicroBatch, temperature: float = 1.0) -> TokenOutput:
    """Run the model over a micro-batch.

    Args:
        model: A model prepared by `agentgym.learner.model.prepare`.
        batch: Micro-batch on the model's device.
        temperature: The temperature the tokens were sampled at.
    """
    hidden = read(model, batch)[batch.at]
    chunks = zip(hidden.split(CHUNK), batch.targets.split(CHUNK), strict=True)
    if len(batch.targets) <= CHUNK:
        parts = [_logp_entropy(model, h, t, temperature) for h, t in chunks]
    else:
        parts = [checkpoint(_logp_entropy, model, h, t, temperature, use_reentrant=False) for h, t in chunks]
    return TokenOutput(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), hidden)


def score(
    model: Any,
    ids: Sequence[int],
    start: int,
    images: Sequence[ImageSpan] = (),
    pictures: Mapping[str, Picture] | None = None,
) -> list[float]:
    """Log-probabilities (temperature 1) of ``ids[start:]``, each given all ids before it; ``start`` is at least 1.

    Args:
        model: A model prepared by `agentgym.learner.model.prepare`.
        ids: A row of tokens.
        start: The first that is scored.
        images: Where in it images stand.
        pictures: The images by hash.
    """
    logp = predictions(model, ids, start, images, pictures)[:-1]
    found: list[float] = logp.gather(1, torch.tensor(ids[start:], device=logp.device)[:, None])[:, 0].tolist()
    return found


@torch.inference_mode()
def predictions(
    model: Any,
    ids: Sequence[int],
    start: int,
    images: Sequence[ImageSpan] = (),
    pictures: Mapping[str, Picture] | None = None,
) -> torch.Tensor:
    """Log-probabilities ``[len(ids) - start + 1, V]`` of what comes after ``ids[:start]`` and each longer part of it.

    Args:
        model: As in `score`.
        ids: A row of tokens.
        start: Length of the first part, at least 1.
        images: Where in the row images stand.
        pictures: The images by hash.
    """
    tokens = torch.tensor(ids, device=next(model.parameters()).device)
    places = torch.from_numpy(positions_of(len(ids), images)) if has_grid(images) else torch.arange(len(ids))
    layout, splice = Packed([0, len(tokens)], [-1]), spliced(model, pictures or {}, images)
    hidden = hidden_states(model, tokens, places.to(tokens.device), layout, splice)
    return logits_at(model, hidden[start - 1 :]).log_softmax(-1)


def _logp_entropy(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits_at(model, hidden)
    logp = (logits / temperature if temperature != 1.0 else logits).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
