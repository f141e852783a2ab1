"""Drawing tokens from logits, each row with its own generator, temperature and nucleus."""

from __future__ import annotations

import torch

from agentgym.errors import EngineError
from agentgym.policies.base import Request


def sample(logits: torch.Tensor, requests: list[Request]) -> tuple[list[int], list[float]]:
    """Draw one token a row by inversion, each row with its own generator.

    Args:
        logits: Float32 ``[b, V]``.
        requests: Temperature, top-p and generator of each row.

    Returns:
        Tokens, and their log-probabilities under the distributions they were drawn from.

    Raises:
        EngineError: If logits are not numbers.
    """
    temperature = torch.tensor([r.temperature or 1.0 for r in requests], device=logits.device)
    logp = (logits / temperature[:, None]).log_softmax(-1)
    for i, request in enumerate(requests):
        if request.top_p < 1.0 and request.temperature:
            logp[i] = _nucleus(logp[i], request.top_p)
    mass = logp.double().exp().cumsum(-1)
    if not bool(mass[:, -1].isfinite().all()):
        raise EngineError("the logits are not finite numbers")
    draws = [r.rng.random() for r in requests]
    point = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * mass[:, -1:]
    drawn = torch.searchsorted(mass, point, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
    greedy = torch.tensor([r.temperature == 0 for r in requests], device=logits.device)
    tokens = torch.where(greedy, logp.argmax(-1), drawn)
    return tokens.tolist(), logp.gather(1, tokens[:, None])[:, 0].tolist()


def _nucleus(logp: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of tokens that holds ``top_p`` of the mass, renormalised."""
    order = logp.argsort(descending=True)
    before = logp[order].exp().cumsum(0) - logp[order].exp()
    cut = order[before >= top_p]
    return logp.index_fill(0, cut, float("-inf")).log_softmax(-1)
