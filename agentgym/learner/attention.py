"""One attention function for packed training rows and for cached decoding, plugged into transformers.

A model loaded with ``attn_implementation=NAME`` runs on a flat row of tokens ``[1, T]`` without padding; what each
token may attend to is said by the ``layout`` passed to its forward. `Packed` (here) is the layout of training,
``policies.kv_cache.Step`` the one of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from agentgym.errors import ConfigError

NAME = "agentgym"
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
        out = []
        for i, parent in enumerate(self.parents):
            a, b = self.cu[i], self.cu[i + 1]
            k, v = key[:, a:b], value[:, a:b]
            mask = None
            if parent >= 0:
                spans = self._ancestors(parent)
                k = torch.cat([*(key[:, s:e] for s, e in spans), k], 1)
                v = torch.cat([*(value[:, s:e] for s, e in spans), v], 1)
                past = k.shape[1] - (b - a)
                mask = torch.ones(b - a, k.shape[1], dtype=torch.bool, device=k.device).tril(past)
            o = F.scaled_dot_product_attention(
                query[None, :, a:b],
                k[None],
                v[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[0] != key.shape[0],
            )
            out.append(o[0])
        return torch.cat(out, 1).transpose(0, 1)

    def _ancestors(self, row: int) -> list[tuple[int, int]]:
        spans = []
        while row >= 0:
            spans.append((self.cu[row], self.cu[row + 1]))
            row = self.parents[row]
        return spans[::-1]

    def _varlen(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        cu = torch.tensor(self.cu, dtype=torch.int32, device=query.device)
        longest = max(b - a for a, b in zip(self.cu[:-1], self.cu[1:], strict=True))
        q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))
        out = varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True)
        assert isinstance(out, torch.Tensor)
        return out


def hidden_states(model: Any, ids: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Last hidden states of a flat row of tokens.

    Args:
        model: A causal LM of transformers that runs with `NAME` attention.
        ids: Token ids ``[T]``.
        positions: Position of each token in its own sequence ``[T]``.
        layout: Who attends to whom.

    Returns:
        ``[T, d]``, ready for the output embeddings.
    """
    decoder = model.get_decoder()
    if decoder.config._attn_implementation != NAME:
        raise ValueError("the model's attention was switched: pass it through learner.model.prepare (again)")
    out = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=layout)
    return out.last_hidden_state[0]


def logits_at(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[N, V]`` of hidden states ``[N, d]``, in float32 at least."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
