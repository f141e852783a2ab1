"""One optimizer step over packed micro-batches, whatever the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from agentgym.errors import AgentGymError, ConfigError
from agentgym.learner.logprobs import TokenOutput, token_logprobs
from agentgym.learner.model import checkpoint_layers
from agentgym.learner.pack import MicroBatch

LossFn = Callable[[TokenOutput, MicroBatch], tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass
class OptimConfig:
    """AdamW.

    Attributes:
        lr: Learning rate after the warm-up.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Optimizer step at which a decay after the warm-up ends; 0 keeps the rate constant.
        decay: linear, or cosine (half a period).
        min_ratio: Share of ``lr`` at which the decay ends and the warm-up begins.
        betas: Decay of the moments.
        weight_decay: Decoupled weight decay.
        grad_clip: Largest gradient norm.
        token_budget: Most tokens of a micro-batch; more of them need more memory and save little time.
        share_prefixes: Compute prompts that rows share only once.
        gradient_checkpointing: Keep only the input of every layer for the gradient and compute the layer again on the
            way back: a quarter to a third more time for far less memory.
        autocast: Compute the update in bfloat16 while the parameters stay in float32: faster, but the recomputed
            log-probabilities then differ from those at sampling by a few hundredths.
    """

    lr: float = 1e-4
    warmup_steps: int = 0
    decay_steps: int = 0
    decay: Literal["linear", "cosine"] = "linear"
    min_ratio: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    token_budget: int = 8192
    share_prefixes: bool = True
    gradient_checkpointing: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "grad_clip", "token_budget"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it must be above 0")
        for name in ("warmup_steps", "decay_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ConfigError(f"optim.decay_steps ({self.decay_steps}) must be above its warmup_steps")
        if self.decay == "cosine" and not self.decay_steps:
            raise ConfigError("optim.decay is cosine, but optim.decay_steps is 0: say where the decay ends")
        if not 0 <= self.min_ratio < 1:
            raise ConfigError(f"optim.min_ratio is {self.min_ratio}: it must be in [0, 1)")
        self.betas = tuple(self.betas)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"optim.betas is {self.betas}: it must be two numbers in [0, 1)")

    def check_steps(self, steps: int) -> None:
        """Refuse a decay that ends before the run does.

        Raises:
            ConfigError: If the learning rate would be 0 for the rest of ``steps`` optimizer steps.
        """
        if 0 < self.decay_steps < steps and not self.min_ratio:
            raise ConfigError(
                f"optim.decay_steps is {self.decay_steps}, but the run takes {steps} optimizer steps: the rate "
                "would be 0 for the rest; raise it, or use 0 for no decay"
            )


class Learner:
    """A model and its optimizer.

    Attributes:
        model: Trained in place; a policy in the same process decodes with it.
        head: A module that is trained beside it, such as a critic's, or None.
        updates: Optimizer steps taken.
    """

    def __init__(
        self, model: Any, config: OptimConfig, head: torch.nn.Module | None = None, head_lr: float | None = None
    ):
        """Make the optimizer.

        Args:
            model: The policy's module.
            config: Settings of AdamW.
            head: A module that the loss uses beside the model. Its gradient is clipped on its own.
            head_lr: Learning rate of the head, with the same warm-up and decay; that of the model by default.

        Raises:
            ConfigError: If parameters of half precision would be trained: small updates would round to nothing.
        """
        self.model, self.config, self.head = model, config, head
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        self.device = next(model.parameters()).device
        trained = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in trained):
            raise ConfigError(
                "model.dtype is of half precision, where small updates round to nothing: train with float32 "
                "(optim.autocast=true computes in bfloat16), or with adapters (model.lora.rank)"
            )
        groups: list[dict[str, Any]] = [{"params": trained, "peak": config.lr}]
        if head is not None:
            groups.append({"params": list(head.parameters()), "peak": head_lr or config.lr})
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay
        )
        self.updates = 0

    def step(
        self,
        batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        temperature: float = 1.0,
        keep: Callable[[dict[str, float]], bool] | None = None,
    ) -> dict[str, float]:
        """Take one optimizer step; the micro-batches count as one batch.

        Args:
            batches: Their ``weights`` are normalised over all of them.
            loss_fn: From model output and micro-batch to a loss (the sum of weighted token losses, so that the
                losses of micro-batches add up) and metrics, each of one number a token (of all, or of some),
                averaged over those tokens of all micro-batches.
            temperature: Temperature the tokens were sampled at.
            keep: Says from the mean metrics whether the model takes its step; the head takes it always.

        Raises:
            AgentGymError: If the gradient is not finite; the weights are left as they were.
        """
        self.model.eval()  # with dropout the trained policy would not be the one that sampled
        self.optimizer.zero_grad(set_to_none=True)  # what an interrupted step may have left
        total = 0.0
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for micro in batches:
            batch = micro.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
                out = token_logprobs(self.model, batch, temperature)
            loss, metrics = loss_fn(out, batch)
            loss.backward()
            total += float(loss.detach())
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach().sum())
                counts[name] = counts.get(name, 0) + len(value)
        groups = self.optimizer.param_groups
        norms = [float(torch.nn.utils.clip_grad_norm_(g["params"], self.config.grad_clip)) for g in groups]
        if not all(math.isfinite(norm) for norm in norms):
            self.optimizer.zero_grad(set_to_none=True)
            raise AgentGymError(
                f"the gradient of update {self.updates} is not finite: lower optim.lr ({self.config.lr:g}) "
                "and resume from the last checkpoint"
            )
        means = {name: value / max(1, counts[name]) for name, value in sums.items()}
        if keep is not None and not keep(means):
            for parameter in groups[0]["params"]:
                parameter.grad = None
        factor = self.schedule()
        for group in groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return {"optim/loss": total, "optim/grad_norm": norms[0], "optim/lr": groups[0]["lr"], **means}

    def schedule(self) -> float:
        """Factor on the learning rate of the next optimizer step: linear warm-up, then constant or a decay.

        With a cosine the warm-up begins at ``min_ratio`` itself, as in verl; else one step above it.
        """
        warmup, end, step = self.config.warmup_steps, self.config.decay_steps, self.updates
        cosine, low = self.config.decay == "cosine", self.config.min_ratio
        if step < warmup:
            part = (step if cosine else step + 1) / warmup
        else:
            part = max(0.0, end - step) / max(1, end - warmup) if end else 1.0
            part = 0.5 - 0.5 * math.cos(math.pi * part) if cosine else part
        return low + (1 - low) * part

    def state(self) -> dict[str, Any]:
        """Optimizer state, head and counter, for a checkpoint."""
        head = {} if self.head is None else {"head": self.head.state_dict()}
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, **head}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; the learning rate stays that of the config."""
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        if self.head is not None:
            self.head.load_state_dict(state["head"])
        self.updates = int(state["updates"])
