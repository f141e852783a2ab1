"""Loading a causal language model and making sure that this package computes what transformers computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from agentgym.errors import ConfigError
from agentgym.learner import lora
from agentgym.learner.attention import NAME, Packed, hidden_states, logits_at
from agentgym.renderer import HFTokenizer, Renderer

_PROBE_TOKENS = 24
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05

logging.disable_progress_bar()


def load_model(path: str, dtype: torch.dtype = torch.float32, rank: int = 0) -> tuple[Any, Any, Renderer]:
    """Load a model, its tokenizer and the renderer of its chat template.

    Args:
        path: A Hugging Face id or a local folder, of a model or of an adapter that peft saved.
        dtype: Type of the parameters.
        rank: For an adapter: its rank, to go on training it, or 0 to merge it into the model.

    Returns:
        The prepared model, the tokenizer, the renderer.

    Raises:
        ConfigError: If there is no such model or it cannot run on packed rows.
        TemplateError: If its template cannot be rendered incrementally.
    """
    folder = Path(path).expanduser()
    adapter = folder if (folder / lora.ADAPTER).is_file() else None
    if path.startswith((".", "/", "~")) and not adapter and not (folder / "config.json").is_file():
        raise ConfigError(f"no model in {path}: the folder needs config.json and *.safetensors")
    source = str(folder) if path.startswith("~") else path
    base = lora.base_of(adapter) if adapter else source
    try:
        own = adapter is None or (adapter / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(source if own else base)
        renderer = Renderer(HFTokenizer(tokenizer))
        AutoConfig.from_pretrained(base)
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                base, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"cannot load the model {base!r}: {str(error).splitlines()[0]}") from error
    absent = sorted([*found["missing_keys"], *(str(key) for key, *_ in found["mismatched_keys"])])
    if absent:
        some = ", ".join(absent[:3])
        raise ConfigError(f"the model {base!r} is incomplete: {len(absent)} weights are missing ({some})")
    largest, known = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ConfigError(f"the model {path!r} knows {known} tokens, but its tokenizer goes up to id {largest}")
    model = prepare(model)
    return lora.load_adapter(model, adapter, rank) if adapter else model, tokenizer, renderer


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers would report of a model that does not load becomes one error here."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def frozen_copy(model: Any) -> Any:
    """A copy that does not change when the model is trained: a reference policy, or the backbone of a critic.

    Parameters that are not trained (those below an adapter) are shared, not copied.
    """
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


def prepare(model: Any) -> Any:
    """Switch a model to this package's attention, after checking on a probe that the logits stay the same.

    Args:
        model: ``AutoModelForCausalLM`` with a stock attention.

    Raises:
        ConfigError: If the model's logits change, for example for sliding windows or scaled logits, or what it
            makes of a row depends on the others in the batch.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    if {"dynamic", "longrope"} & {str(r.get("rope_type")) for r in (rope, *rope.values()) if isinstance(r, dict)}:
        raise ConfigError(
            f"{model.config.model_type}: positions that are scaled by the longest row of a batch (dynamic, longrope) "
            "are not supported"
        )
    layers = getattr(model.config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in layers):
        raise ConfigError(f"{model.config.model_type}: only models with full attention in every layer are supported")
    device = next(model.parameters()).device
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device) % model.config.vocab_size
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits[0].double()
        model.set_attn_implementation(NAME)
        layout = Packed([0, len(ids)], [-1])
        got = logits_at(model, hidden_states(model, ids, torch.arange(len(ids), device=device), layout)).double()
    model.train(training)
    worst = float((expected - got).abs().max() / expected.abs().max())
    if not worst <= _TOLERANCE.get(next(model.parameters()).dtype, _HALF_TOLERANCE):
        raise ConfigError(
            f"{model.config.model_type}: packed rows give other logits than transformers (off by {worst:.1e}); "
            "this architecture is not supported"
        )
    return model
