"""Networks of Deep CFR and how they are fitted to a reservoir.

| equation | function |
|---|---|
| L_V = E[ t'/t · Σ_{a legal} (r̃(a) − V(x, a))² ] | `advantage_loss` |
| L_Π = E[ t'/t · Σ_a (σ(a) − Π(x, a))² ] | `policy_loss` |

Dividing t' by the present iteration t keeps the size of the loss. Source: Brown et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from agentgym.reservoir import Reservoir

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mlp(inputs: int, actions: int, hidden: Sequence[int], seed: int) -> nn.Sequential:
    """A network ``[n, inputs] → [n, actions]``: linear, LayerNorm and ReLU for every hidden layer, then linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, actions))


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Probabilities over legal actions ``[n, A]``."""
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def advantage_loss(output: Tensor, target: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error over legal actions.

    Args:
        output: V(x, a) ``[n, A]``.
        target: r̃(a) ``[n, A]``.
        mask: Legal actions ``[n, A]``.
        weight: t'/t ``[n]``.
    """
    return (weight * ((target - output) * mask).square().sum(-1)).mean()


def policy_loss(output: Tensor, target: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error between σ and the softmax of the output over legal actions; shapes as in the other."""
    return (weight * (target - masked_softmax(output, mask)).square().sum(-1)).mean()


def fit_advantage(net: nn.Module, memory: Reservoir, t: int, steps: int, batch: int, lr: float, seed: int) -> float:
    """Fit V to sampled regrets with Adam; see `fit`."""
    return fit(net, memory, advantage_loss, t, steps, batch, lr, seed)


def fit_policy(net: nn.Module, memory: Reservoir, t: int, steps: int, batch: int, lr: float, seed: int) -> float:
    """Fit Π to the strategies played with Adam; see `fit`."""
    return fit(net, memory, policy_loss, t, steps, batch, lr, seed)


def fit(net: nn.Module, memory: Reservoir, loss: Loss, t: int, steps: int, batch: int, lr: float, seed: int) -> float:
    """Train a fresh network on a reservoir.

    Args:
        net: Trained in place.
        memory: Not empty.
        loss: Of output, target, mask and weight.
        t: The present iteration, by which those of the items are divided.
        steps: Adam steps.
        batch: Items a step, drawn with replacement.
        lr: Learning rate.
        seed: Of the batches.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    device = next(net.parameters()).device
    size, rng = len(memory), np.random.default_rng(seed)
    data = [torch.from_numpy(array[:size]).to(device) for array in (memory.x, memory.y, memory.mask, memory.t)]
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    late: list[Tensor] = []
    for step in range(steps):
        chosen = torch.from_numpy(rng.integers(size, size=batch)).to(device)
        x, target, mask, when = (array[chosen] for array in data)
        error = loss(net(x), target, mask, when / t)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if step >= steps - max(1, steps // 10):
            late.append(error.detach())
    return float(torch.stack(late).mean())


@torch.inference_mode()
def evaluate(net: nn.Module, x: np.ndarray) -> np.ndarray:
    """The outputs of a network ``[n, A]`` for inputs ``[n, inputs]``."""
    device = next(net.parameters()).device
    return net(torch.from_numpy(x).to(device)).cpu().numpy()
