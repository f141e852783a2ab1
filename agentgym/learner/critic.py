"""A critic: a value head on the hidden states of a language model.

The value of the state before a token is read where the model predicts that token: at the token before it. So the value
of a turn's start stands on the last token of its prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from agentgym.errors import ConfigError
from agentgym.learner.logprobs import read
from agentgym.learner.model import frozen_copy
from agentgym.learner.pack import MicroBatch


@dataclass
class CriticConfig:
    """The critic.

    Attributes:
        backbone: What the head reads: ``frozen``, the model as it was at the start (only the head learns), or
            ``shared``, the policy itself, into which the value loss then flows.
        widths: Widths of the head's hidden layers.
        lr: Learning rate of the head.
        coef: Weight of the value loss beside the policy's; it matters for a shared backbone only.
        clip: How far a value may move from that at the rollout, in units of reward, or None for no clipping.
    """

    backbone: Literal["frozen", "shared"] = "frozen"
    widths: tuple[int, ...] = (1024, 512)
    lr: float = 1e-3
    coef: float = 0.5
    clip: float | None = 0.5

    def __post_init__(self) -> None:
        for name in ("lr", "coef"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"critic.{name} is {getattr(self, name)}: it must be above 0")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"critic.clip is {self.clip}: it must be above 0, or null for no clipping")
        if not all(width > 0 for width in self.widths):
            raise ConfigError(f"critic.widths is {self.widths}: every width must be above 0")


class ValueHead(nn.Module):
    """Linear layers without bias and ReLU between them; the last starts at 0, so every value does.

    Source: POAD's code (2405.15821), widths 1024 and 512.
    """

    def __init__(self, width: int, widths: Sequence[int]):
        """Make a head for hidden states of ``width``."""
        super().__init__()
        sizes = [width, *widths, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Values ``[N]`` of hidden states ``[N, d]``, in float32."""
        x = features.float()
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out[:, 0]


class Critic:
    """The value head and what it reads.

    Attributes:
        head: Trained by the learner beside the policy.
        start: The model as it was at the start; None for a shared backbone.
    """

    def __init__(self, model: Any, config: CriticConfig, seed: int):
        """Make the head, and for a frozen backbone a copy of the model.

        Args:
            model: The policy's module before training.
            config: Settings.
            seed: Seed of the head's weights.
        """
        self.config, self._model = config, model
        self.start = frozen_copy(model) if config.backbone == "frozen" else None
        width = model.get_input_embeddings().embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = ValueHead(width, config.widths).to(next(model.parameters()).device)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> tuple[np.ndarray, Tensor | None]:
        """Values of every trained token, as the critic stands.

        Args:
            batches: Micro-batches that hold N trained tokens in all.

        Returns:
            Values ``[N]``, and what the head read ``[N, d]``, which stays the same for a frozen backbone; None for
            a shared one.
        """
        values, features = [], []
        backbone = self._model if self.start is None else self.start
        for micro in batches:
            batch = micro.to(next(self.head.parameters()).device)
            hidden = read(backbone, batch)[batch.at]
            values.append(self.head(hidden).double().cpu())
            features.append(hidden)
        return torch.cat(values).numpy(), torch.cat(features) if self.start is not None else None
