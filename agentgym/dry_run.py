"""What a training run would need, without running it: its settings, the model's shapes, an estimate of memory.

The model is built without weights, so its config is all that is read: a folder with a ``config.json`` will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from agentgym.env_worker import check_id
from agentgym.errors import ConfigError, unknown
from agentgym.learner import tiny
from agentgym.learner.logprobs import CHUNK
from agentgym.learner.setup import TINY_POSITIONS, ModelConfig
from agentgym.learner.vision import FAMILIES

_GIB = 2**30
_ADAM = 8
"""Bytes of AdamW's two moments, in float32."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model.

    Attributes:
        parameters: All of them.
        trained: Those that are trained.
        layers: Of the language model.
        hidden: Its width.
        heads: Its attention heads.
        kv_heads: Those of keys and values.
        head_dim: Width of a head.
        inner: Width inside the feed-forward layer that a token passes.
        vocabulary: Tokens.
        positions: Longest context.
    """

    parameters: int
    trained: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    positions: int


def shapes(config: ModelConfig) -> Shapes:
    """Build a model without weights and count.

    Raises:
        ConfigError: If its config cannot be read, or no layer gets an adapter.
    """
    found = _tiny(config) if config.path == "tiny" else _read(config.path)
    kind = AutoModelForImageTextToText if found.model_type in FAMILIES else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(found)
    model.tie_weights()
    text = found.get_text_config()
    heads = text.num_attention_heads
    parameters = sum(p.numel() for p in model.parameters())
    experts = getattr(text, "num_experts_per_tok", None)
    return Shapes(
        parameters=parameters,
        trained=_adapters(model, config) if config.lora.rank else parameters,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        inner=experts * text.moe_intermediate_size if experts else text.intermediate_size,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
    )


def _tiny(config: ModelConfig) -> Any:
    if config.family != "llama":
        raise unknown("model.family for --dry-run with model.path=tiny", config.family, ["llama"])
    tokenizer = tiny.train_tokenizer([""], config.vocab_size)
    found = tiny.build_model(tokenizer, 0, config.hidden, 1, config.heads, TINY_POSITIONS).config
    found.num_hidden_layers, found.vocab_size = config.layers, config.vocab_size
    return found


def _read(path: str) -> Any:
    try:
        return AutoConfig.from_pretrained(str(Path(path).expanduser()))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"cannot read the config of model.path={path!r} ({reason}): give a folder with its config.json, or a "
            "Hugging Face id that can be reached"
        ) from error


def _adapters(model: Any, config: ModelConfig) -> int:
    """Parameters of the adapters."""
    names = [name.strip() for name in config.lora.targets.split(",")]
    output = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output}
    chosen = [m for n, m in linear.items() if names == ["all-linear"] or n.rpartition(".")[2] in names]
    if not chosen:
        known = sorted({n.rpartition(".")[2] for n in linear})
        raise ConfigError(f"model.lora.targets is {config.lora.targets!r}: the linear layers are {', '.join(known)}")
    return sum(config.lora.rank * (m.in_features + m.out_features) for m in chosen)


def _element(cfg: Any) -> int:
    """Bytes of a parameter."""
    return int(cfg.model.torch_dtype().itemsize)


def _cached(cfg: Any, model: Shapes) -> int:
    """Bytes of the keys and values of all episodes that run at a time, at their longest."""
    token = 2 * model.layers * model.kv_heads * model.head_dim * _element(cfg)
    return int(cfg.rollout.concurrency * cfg.rollout.context_limit * token)


def memory(cfg: Any, model: Shapes) -> dict[str, float]:
    """Estimated bytes of the trainer, by what needs them, at the largest micro-batch.

    Activations are those of a decoder layer with fused attention: what is kept of a token for the gradient is about
    8 times the width and 4 times the inner width. Adapters leave out none of that. With gradient checkpointing it is
    kept of one layer at a time, and the width of each.
    """
    size = _element(cfg)
    computed = 2 if cfg.optim.autocast else size
    tokens = max(cfg.optim.token_budget, cfg.rollout.context_limit)
    written = min(tokens, CHUNK)
    layer = 8 * model.hidden + 4 * model.inner
    kept = layer + model.layers * model.hidden if cfg.optim.gradient_checkpointing else model.layers * layer
    algo, critic = getattr(cfg, "algo", None), getattr(cfg, "critic", None)
    copies = int(bool(getattr(algo, "kl_coef", 0)) or (critic is not None and critic.backbone == "frozen"))
    return {
        "weights": model.parameters * size,
        "frozen copy": copies * (model.parameters if model.trained == model.parameters else 0) * size,
        "gradients": model.trained * 4,
        "AdamW": model.trained * _ADAM,
        "activations": tokens * kept * computed,
        "logits": 3 * written * model.vocabulary * 4,
        "keys and values": 0 if served(cfg) else _cached(cfg, model),
    }


def served(cfg: Any) -> bool:
    """Whether vLLM decodes."""
    return hasattr(cfg, "decode") and cfg.decode.backend == "vllm"


def check(cfg: Any, model: Shapes) -> list[str]:
    """Refuse what cannot run; say what deserves a thought.

    Raises:
        ConfigError: If the settings do not fit the model.
    """
    if hasattr(cfg, "env"):
        check_id(cfg.env.id)
    if cfg.rollout.context_limit > model.positions:
        raise ConfigError(
            f"rollout.context_limit is {cfg.rollout.context_limit}, but the model has {model.positions} positions"
        )
    if cfg.model.dtype != "float32" and model.trained == model.parameters:
        raise ConfigError(
            f"model.dtype is {cfg.model.dtype}, where small updates round to nothing: train with float32 "
            "(optim.autocast=true), or with adapters (model.lora.rank)"
        )
    notes = []
    if cfg.optim.token_budget < cfg.rollout.context_limit:
        notes.append(
            f"optim.token_budget ({cfg.optim.token_budget}) is below rollout.context_limit "
            f"({cfg.rollout.context_limit}): a long trajectory is a micro-batch of its own"
        )
    if served(cfg):
        weights, cached = model.parameters * _element(cfg) / _GIB, _cached(cfg, model) / _GIB
        notes.append(
            f"each vLLM server needs {weights:.1f} GiB for weights and up to {cached:.1f} GiB for keys and values of "
            f"{cfg.rollout.concurrency} rows ({weights + cached:.1f} GiB in all), beside the trainer or on another card"
        )
    return notes


def dry_run(cfg: Any) -> str:
    """The report of `agentgym train ... --dry-run`.

    Raises:
        ConfigError: If the settings cannot run.
    """
    model = shapes(cfg.model)
    notes = check(cfg, model)
    parts = memory(cfg, model)
    total = sum(parts.values())
    percent = 100 * model.trained / model.parameters
    lines = [
        f"model       {model.parameters / 1e9:.3g} B parameters, {percent:.3g} % trained; {model.layers} layers, "
        f"width {model.hidden}, {model.heads} heads ({model.kv_heads} for keys and values), {model.vocabulary} tokens",
        f"episodes    at most {cfg.rollout.context_limit} tokens and {cfg.rollout.max_turns} turns of "
        f"{cfg.rollout.max_new_tokens} tokens, {cfg.rollout.concurrency} at a time",
        "memory of the trainer, estimated, in GiB",
        *(f"  {name:<16}{size / _GIB:8.2f}" for name, size in parts.items() if size),
        f"  {'in all':<16}{total / _GIB:8.2f}",
        *(f"note: {note}" for note in notes),
    ]
    if torch.cuda.is_available():
        there = torch.cuda.mem_get_info()[1]
        fits = "fits" if total < there else "does NOT fit"
        lines.append(f"this card has {there / _GIB:.1f} GiB: it {fits}")
    return "\n".join(lines)
