"""Loading a model, one that sees too, and making sure that this package computes what transformers computes."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import cached_file, logging

from agentgym.errors import ConfigError
from agentgym.learner import lora
from agentgym.learner.attention import NAME, Packed, hidden_states, logits_at
from agentgym.learner.places import positions_of
from agentgym.learner.vision import Vision, give, load_vision, splice
from agentgym.learner.vision_tokenizer import VisionTokenizer
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.types import ImageSpan

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
        vision = load_vision(base, AutoConfig.from_pretrained(base))
        renderer = renderer_of(tokenizer, vision, base)
        kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
        with _quiet():
            model, found = kind.from_pretrained(base, dtype=dtype, attn_implementation="sdpa", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"cannot load the model {base!r}: {str(error).splitlines()[0]}") from error
    absent = sorted([*found["missing_keys"], *(str(key) for key, *_ in found["mismatched_keys"])])
    if absent:
        some = ", ".join(absent[:3])
        raise ConfigError(f"the model {base!r} is incomplete: {len(absent)} weights are missing ({some})")
    largest, known = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ConfigError(f"the model {path!r} knows {known} tokens, but its tokenizer goes up to id {largest}")
    model = prepare(model, vision)
    return lora.load_adapter(model, adapter, rank) if adapter else model, tokenizer, renderer


def renderer_of(tokenizer: Any, vision: Vision | None, source: str = "") -> Renderer:
    """The renderer of a model's chat template; older vision-language models keep it beside their processor."""
    if vision is None:
        return Renderer(HFTokenizer(tokenizer))
    if not tokenizer.chat_template and source:
        file = cached_file(source, "chat_template.json", _raise_exceptions_for_missing_entries=False)
        tokenizer.chat_template = json.loads(Path(file).read_bytes())["chat_template"] if file else None
    return Renderer(VisionTokenizer(tokenizer, vision))


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


def checkpoint_layers(model: Any) -> None:
    """Make every decoder layer keep its input alone where a gradient is wanted, and be computed again for it."""
    for layer in model.get_decoder().layers:
        layer.forward = functools.partial(_again, layer.forward)


def _again(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def prepare(model: Any, vision: Vision | None = None) -> Any:
    """Switch a model to this package's attention, after checking on a probe that the logits stay the same.

    Args:
        model: ``AutoModelForCausalLM`` with a stock attention, or ``AutoModelForImageTextToText`` with its ``vision``.
        vision: Its eyes; the tower keeps its stock attention.

    Raises:
        ConfigError: If the model's logits change, for example for sliding windows or scaled logits, or what it
            makes of a row depends on the others in the batch.
    """
    config, name = model.config.get_text_config(), model.config.model_type
    rope = getattr(config, "rope_parameters", None) or {}
    if {"dynamic", "longrope"} & {str(r.get("rope_type")) for r in (rope, *rope.values()) if isinstance(r, dict)}:
        raise ConfigError(
            f"{name}: positions that are scaled by the longest row of a batch (dynamic, longrope) are not supported"
        )
    layers = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in layers):
        raise ConfigError(f"{name}: only models with full attention in every layer are supported")
    training = model.training
    model.eval()
    with torch.no_grad():
        expected, got = _probe(model, config.vocab_size, vision)
    model.train(training)
    worst = float((expected - got).abs().max() / expected.abs().max())
    if not worst <= _TOLERANCE.get(next(model.parameters()).dtype, _HALF_TOLERANCE):
        raise ConfigError(
            f"{name}: packed rows give other logits than transformers (off by {worst:.1e}); "
            "this architecture is not supported"
        )
    return model


def _probe(model: Any, vocabulary: int, vision: Vision | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a row, with an image in it if the model sees: transformers' own, and those behind the switch."""
    device = next(model.parameters()).device
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device) % vocabulary
    if vision is None:
        expected = model(input_ids=ids[None]).logits[0]
        model.set_attn_implementation(NAME)
        places, features = torch.arange(len(ids), device=device), None
    else:
        inputs, n, columns = vision.probe()
        ids = torch.where(ids == vision.image_id, 0, ids)
        ids = torch.cat([ids, torch.full((n,), vision.image_id, device=device), ids])[None]
        stock = {k: v.to(device) for k, v in vision.stock(ids, inputs).items()}
        expected, ids = model(input_ids=ids, **stock).logits[0], ids[0]
        give(model, vision)
        model.get_decoder().set_attn_implementation(NAME)
        image = ImageSpan("", _PROBE_TOKENS, _PROBE_TOKENS + n, 0, columns)
        places = torch.from_numpy(positions_of(len(ids), [image])).to(device)
        places = places if columns else places[0]
        features = splice([vision.run(model, inputs)], range(image.start, image.stop))
    layout = Packed([0, len(ids)], [-1])
    got = logits_at(model, hidden_states(model, ids, places, layout, features))
    return expected.double(), got.double()
