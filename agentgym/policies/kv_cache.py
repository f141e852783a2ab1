"""An append-only key-value cache with one slot per episode, kept across the turns of the episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


class KVCache:
    """Keys and values of all layers, ``[slots, K, capacity, D]`` each; both outer sizes grow by doubling.

    Attributes:
        tokens: The ids that each slot holds; the cache trusts them alone.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device):
        """Make an empty cache for a model config."""
        heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.layers = config.num_hidden_layers
        self.dtype, self.device = dtype, device
        self.tokens: list[list[int]] = []
        self.capacity = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._allocate(1, 256)

    def _allocate(self, slots: int, capacity: int) -> None:
        shape = (slots, self.kv_heads, capacity, self.head_dim)
        for store in (self.keys, self.values):
            old = list(store)
            store.clear()
            for layer in range(self.layers):
                new = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if old:
                    new[: old[layer].shape[0], :, : self.capacity] = old[layer]
                store.append(new)
        self.capacity = capacity

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for that many slots of that many tokens."""
        have = self.keys[0].shape[0]
        if slots > have or capacity > self.capacity:
            self._allocate(
                max(have, 1 << (slots - 1).bit_length()),
                max(self.capacity, 1 << (capacity - 1).bit_length()),
            )
        while len(self.tokens) < slots:
            self.tokens.append([])

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Let slot ``target`` begin with the first ``length`` tokens of slot ``source``."""
        for store in (self.keys, self.values):
            for layer in store:
                layer[target, :, :length] = layer[source, :, :length]
        self.tokens[target] = self.tokens[source][:length]

    @torch.inference_mode()
    def scrub(self, slot: int) -> None:
        """Forget a slot whose numbers may be broken: even masked, a NaN left behind would spread to what comes next."""
        self.tokens[slot] = []
        for layer in (*self.keys, *self.values):
            layer[slot] = 0

    def clear(self) -> None:
        """Forget everything: the weights changed."""
        self.tokens = [[] for _ in self.tokens]


@dataclass
class Step:
    """The layout of one forward: single new tokens of some slots, then longer runs of others.

    Attributes:
        cache: Where keys and values go.
        slots: ``[T]`` slot of each new token.
        positions: ``[T]`` position of each new token.
        singles: How many of the slots get one token; those tokens come first.
        runs: ``[b, n]`` index into T of the tokens of each longer run, right-padded with its last one.
        run_valid: ``[b, n]`` False on padding.
    """

    cache: KVCache
    slots: torch.Tensor
    positions: torch.Tensor
    singles: int
    runs: torch.Tensor
    run_valid: torch.Tensor

    def __post_init__(self) -> None:
        n = self.singles
        if n:
            self.single_slots, self.single_high, self.single_bias = self._reach(
                self.slots[:n], self.positions[:n, None]
            )
        if self.runs.numel():
            self.run_slots, self.run_high, self.run_bias = self._reach(
                self.slots[self.runs[:, 0]], self.positions[self.runs]
            )

    def _reach(self, slots: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor | slice, int, torch.Tensor]:
        high = int(positions.max()) + 1
        seen = torch.arange(high, device=positions.device) <= positions[:, :, None]
        bias = torch.zeros(seen.shape, dtype=self.cache.dtype, device=positions.device)
        bias.masked_fill_(~seen, float("-inf"))
        low, top = int(slots[0]), int(slots[-1])
        consecutive = top - low + 1 == len(slots) and bool((slots[1:] > slots[:-1]).all())
        return (slice(low, top + 1) if consecutive else slots), high, bias[:, None]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new keys and values, then attend to everything the slots hold."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slots, :, self.positions] = key.transpose(0, 1)
        values[self.slots, :, self.positions] = value.transpose(0, 1)
        heads, tokens, dim = query.shape
        groups = heads // self.cache.kv_heads
        out = torch.empty(tokens, heads, dim, dtype=query.dtype, device=query.device)
        n = self.singles
        if n:
            q = query[:, :n].transpose(0, 1).reshape(n, self.cache.kv_heads, groups, dim)
            k = keys[self.single_slots, :, : self.single_high]
            v = values[self.single_slots, :, : self.single_high]
            scores = torch.matmul(q * scale, k.transpose(-1, -2)) + self.single_bias
            weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
            out[:n] = torch.matmul(weights, v).reshape(n, heads, dim)
        if self.runs.numel():
            q = query[:, self.runs].transpose(0, 1)
            k = keys[self.run_slots, :, : self.run_high]
            v = values[self.run_slots, :, : self.run_high]
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=self.run_bias, scale=scale, enable_gqa=groups > 1)
            out[self.runs[self.run_valid]] = o.transpose(1, 2)[self.run_valid]
        return out


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
