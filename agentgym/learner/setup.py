"""What every trainer needs before its loop: the model and evaluation settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agentgym import seeding
from agentgym.errors import AgentGymError, ConfigError, unknown
from agentgym.learner import tiny, tiny_vision
from agentgym.learner.lora import LoraConfig, add_adapter, is_adapted
from agentgym.learner.model import load_model, prepare, renderer_of
from agentgym.learner.vision import FAMILIES, freeze
from agentgym.pictures import without
from agentgym.renderer import Renderer

TINY_POSITIONS = 4096
"""Longest context of the tiny model."""
_FEWEST_TOKENS = 256 + 2 + len(tiny.ROLES)


@dataclass
class ModelConfig:
    """The policy's model.

    Attributes:
        path: A Hugging Face id, a local folder, or ``tiny``: a small model built for the environment's text.
        family: Kind of the tiny model: llama, or one that sees: qwen2_5_vl, qwen3_vl, smolvlm, idefics3.
        hidden: Width of the tiny model.
        layers: Depth of the tiny model.
        heads: Attention heads of the tiny model.
        vocab_size: Vocabulary of the tiny model.
        dtype: Type of the parameters.
        lora: Adapters to train instead of the whole model.
        train_vision: Whether what lies between pixels and embeddings (vision tower and projector) is trained too.
        threads: CPU threads of torch, or 0 for its own choice.
    """

    path: str = "tiny"
    family: str = "llama"
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    vocab_size: int = 1024
    dtype: str = "float32"
    lora: LoraConfig = field(default_factory=LoraConfig)
    train_vision: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"model.dtype is {self.dtype!r}: use float32, bfloat16 or float16")
        if self.family != "llama" and self.family not in FAMILIES:
            raise unknown("model.family", self.family, ["llama", *FAMILIES])
        for name, least in (("hidden", 2), ("layers", 1), ("heads", 1), ("vocab_size", _FEWEST_TOKENS), ("threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: it must be at least {least}")
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"model.hidden ({self.hidden}) must be a multiple of twice model.heads ({self.heads})")
        if self.family in FAMILIES and self.hidden % (4 * self.heads):
            raise ConfigError(f"model.hidden ({self.hidden}) must be a multiple of 4 x model.heads ({self.heads})")
        if self.lora.rank and self.path == "tiny":
            raise ConfigError("model.lora.rank: adapters need a trained model; give its folder as model.path")

    def torch_dtype(self) -> torch.dtype:
        """The torch type of that name."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass
class EvalConfig:
    """Evaluation during training.

    Attributes:
        every: Steps between evaluations; 0 evaluates before and after only.
        episodes: Episodes of each evaluation during training.
        final_episodes: Episodes of the evaluations before and after.
        seed: Chooses the held-out episodes; the same for every training seed.
    """

    every: int = 0
    episodes: int = 128
    final_episodes: int = 256
    seed: int = 12345

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("episodes", 1), ("final_episodes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"eval.{name} is {getattr(self, name)}: it must be at least {least}")


def open_model(config: ModelConfig, run_seed: int, texts: Iterable[str] | None) -> tuple[Any, Any, Renderer]:
    """Load or build the model.

    Args:
        config: Which.
        run_seed: Seed of fresh weights, adapters among them.
        texts: Text to train the tiny model's tokenizer on, or None where only a trained model will do.

    Returns:
        The prepared model, its tokenizer, its renderer.

    Raises:
        ConfigError: If there is no such model, or ``tiny`` is asked for without texts.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = config.torch_dtype()
    if config.path != "tiny":
        model, tokenizer, renderer = _load(config.path, dtype, config.lora.rank)
        if config.lora.rank and not is_adapted(model):
            model = add_adapter(model, config.lora, seeding.init_seed(run_seed))
    elif texts is None:
        raise ConfigError("model.path=tiny has nothing to start from here: give the folder of an SFT run's model")
    else:
        tokenizer = tiny.train_tokenizer(map(without, texts), config.vocab_size)
        seed, vision = seeding.init_seed(run_seed), None
        sizes = (config.hidden, config.layers, config.heads, TINY_POSITIONS)
        if config.family == "llama":
            model = tiny.build_model(tokenizer, seed, *sizes)
        else:
            tiny_vision.add_images(tokenizer, config.family)
            model, vision = tiny_vision.build_model(config.family, tokenizer, seed, *sizes)
        model, renderer = prepare(model.to(dtype), vision), renderer_of(tokenizer, vision)
    if not config.train_vision:
        freeze(model)
    return _placed(model), tokenizer, renderer


def _load(path: str, dtype: torch.dtype, rank: int) -> tuple[Any, Any, Renderer]:
    folder = Path(path).expanduser()
    local = path.startswith((".", "/", "~")) or path.count("/") > 1 or (path.count("/") and folder.parent.is_dir())
    if local and not folder.is_dir():
        raise ConfigError(f"no model in {path}: there is no such folder")
    try:
        return load_model(path, dtype, rank)
    except AgentGymError:
        raise
    except Exception as error:  # damaged files raise all kinds
        raise ConfigError(f"cannot load the model {path!r}: {str(error) or type(error).__name__}") from error


def _placed(model: Any) -> Any:
    return model.to("cuda").eval() if torch.cuda.is_available() else model.eval()
