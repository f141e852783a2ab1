"""Tiny models that play the environments of helpers_envs."""

from __future__ import annotations

from typing import Any

import helpers_envs
import torch

from agentgym.learner.model import prepare
from agentgym.learner.tiny import build_model, train_tokenizer
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import HFTokenizer, Renderer

torch.set_num_threads(1)

TEXTS = [
    f"{helpers_envs.Fault.instructions} {helpers_envs.Echo.instructions} Answer with one command and nothing else.",
    "Task 123: say red. Task 4567: say green. You said go. Step 1. You said wait. Step 2. The end. Say blue Say black",
]


def tiny_model(seed: int = 0, hidden: int = 32, layers: int = 2, heads: int = 2) -> tuple[Any, Any]:
    """A fresh model with its tokenizer."""
    tokenizer = train_tokenizer(TEXTS, 300)
    return build_model(tokenizer, seed, hidden, layers, heads), tokenizer


def tiny_policy(seed: int = 0, name: str = "tiny", sharp: float = 8.0, **settings: Any) -> HFPolicy:
    """A policy with fresh weights; ``sharp`` scales its embeddings, so that its distribution is not flat."""
    model, tokenizer = tiny_model(seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharp)
    return HFPolicy(prepare(model).eval(), Renderer(HFTokenizer(tokenizer)), name, **settings)
