"""One attention function for packed training rows and for cached decoding, plugged into transformers.

A model loaded with ``attn_implementation=NAME`` runs on a flat row of tokens ``[1, T]`` without padding; what each
token may attend to is said by the ``layout`` passed to its forward. `Packed` (here) is the layout of training,
``policies.kv_cache.Step`` the one of decoding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from agentgym.errors import ConfigError

NAME = "agentgym"
_TOGETHER = 256
"""Most tokens of short rows that one call computes: a call costs more than the part of the square it need not fill."""
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")


class Layout(Protocol):
    """Says who attends to whom."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend in one layer.

        Args:
            layer: Index of the layer.
            query: ``[H, T, D]``.
            key: ``[K, T, D]``, K dividing H.
            value: ``[K, T, D]``.
            scale: Factor on the scores.

        Returns:
            ``[T, H, D]``.
        """
        ...


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    for feature in _UNSUPPORTED:
        if more.get(feature) is not None:
            raise ConfigError(f"{module.config.model_type}: attention with {feature} is not supported")  # type: ignore[union-attr]
    if layout is None:
        raise ValueError("models prepared by agentgym need a layout: use learner.attention.hidden_states")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = layout.attend(int(module.layer_idx), query[0], key[0], value[0], scale)  # type: ignore[arg-type]
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@dataclass
class _Unit:
    """Neighbouring rows of the given sizes, tokens ``start`` to ``stop``, that continue the units ``past``."""

    start: int
    stop: int
    past: list[int]
    sizes: list[int]


@dataclass
class Packed:
    """Rows laid end to end, each attending causally to itself and to the rows it continues.

    Attributes:
        cu: Boundaries ``[n + 1]``: row i is ``cu[i]:cu[i + 1]``.
        parents: The row that row i continues (an earlier one), or -1. A parent stands for tokens that several
            rows share: they are computed once.
    """

    cu: Sequence[int]
    parents: Sequence[int]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend row by row; on a GPU in half precision and without parents in one variable-length kernel."""
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and max(self.parents) < 0:
            return self._varlen(query, key, value, scale)
        units = self._units
        sizes = [unit.stop - unit.start for unit in units]
        # split, not slices: the gradient of every slice would be as long as all rows together
        queries, keys, values = (x.split(sizes, 1) for x in (query, key, value))
        out = []
        for i, unit in enumerate(units):
            k, v = keys[i], values[i]
            mask = None
            if unit.past:
                k, v = (torch.cat([*(x[p] for p in unit.past), x[i]], 1) for x in (keys, values))
                mask = self._mask(unit, k.shape[1] - sizes[i], k.device)
            o = F.scaled_dot_product_attention(
                queries[i][None],
                k[None],
                v[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[0] != key.shape[0],
            )
            out.append(o[0])
        return torch.cat(out, 1).transpose(0, 1)

    @functools.cached_property
    def _units(self) -> list[_Unit]:
        """What one attention call computes: a row, or short neighbours that continue the same row and end there."""
        inner = set(self.parents)
        units: list[_Unit] = []
        of_row: list[int] = []
        for i, parent in enumerate(self.parents):
            start, stop = self.cu[i], self.cu[i + 1]
            last = units[-1] if units else None
            if (
                last is not None
                and parent >= 0
                and i not in inner
                and i - 1 not in inner
                and self.parents[i - 1] == parent
                and stop - last.start <= _TOGETHER
            ):
                last.stop = stop
                last.sizes.append(stop - start)
            else:
                past = [*units[of_row[parent]].past, of_row[parent]] if parent >= 0 else []
                units.append(_Unit(start, stop, past, [stop - start]))
            of_row.append(len(units) - 1)
        return units

    def _mask(self, unit: _Unit, past: int, device: torch.device) -> torch.Tensor:
        """Who attends to whom in a unit ``[t, past + t]``: all to the past, each row causally to itself."""
        size = unit.stop - unit.start
        mask = torch.ones(size, past + size, dtype=torch.bool, device=device).tril(past)
        if len(unit.sizes) > 1:
            row = torch.repeat_interleave(torch.tensor(unit.sizes, device=device))
            mask[:, past:] &= row[:, None] == row
        return mask

    def _varlen(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        cu = torch.tensor(self.cu, dtype=torch.int32, device=query.device)
        longest = max(b - a for a, b in zip(self.cu[:-1], self.cu[1:], strict=True))
        q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))
        out = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True)
        assert isinstance(out, torch.Tensor)
        return out


@dataclass
class Splice:
    """What takes the place of token embeddings: the features of images.

    Attributes:
        at: ``[N]`` places in a flat row, ascending.
        embeds: ``[N, d]`` what stands there.
        deep: ``[N, d]`` each, what is added to the hidden states there after the first layers; may be empty.
    """

    at: torch.Tensor
    embeds: torch.Tensor
    deep: list[torch.Tensor]

    def into(self, embeds: torch.Tensor) -> dict[str, Any]:
        """Arguments of a decoder, from the embeddings ``[T, d]`` of all tokens."""
        mixed = embeds.index_copy(0, self.at, self.embeds.to(embeds.dtype))
        if not self.deep:
            return {"inputs_embeds": mixed[None]}
        places = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        places[self.at] = True
        return {"inputs_embeds": mixed[None], "visual_pos_masks": places[None], "deepstack_visual_embeds": self.deep}


def hidden_states(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, layout: Layout, splice: Splice | None = None
) -> torch.Tensor:
    """Last hidden states of a flat row of tokens.

    Args:
        model: A causal LM of transformers that runs with `NAME` attention.
        ids: Token ids ``[T]``.
        positions: Position of each token in its own sequence ``[T]``, or on three axes ``[3, T]`` (M-RoPE).
        layout: Who attends to whom.
        splice: Features of images that stand in place of tokens.

    Returns:
        ``[T, d]``, ready for the output embeddings.
    """
    decoder = model.get_decoder()
    if decoder.config._attn_implementation != NAME:
        raise ValueError("the model's attention was switched: pass it through learner.model.prepare (again)")
    inputs = {"input_ids": ids[None]} if splice is None else splice.into(model.get_input_embeddings()(ids))
    where = positions[None] if positions.dim() == 1 else positions[:, None]
    out = decoder(**inputs, position_ids=where, use_cache=False, layout=layout)
    return out.last_hidden_state[0]


def logits_at(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[N, V]`` of hidden states ``[N, d]``, in float32 at least."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
