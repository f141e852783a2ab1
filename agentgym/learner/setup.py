"""What every trainer needs before its loop: the model and evaluation settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from agentgym import seeding
from agentgym.errors import ConfigError
from agentgym.learner import tiny
from agentgym.learner.model import load_model, prepare
from agentgym.renderer import HFTokenizer, Renderer


@dataclass
class ModelConfig:
    """The policy's model.

    Attributes:
        path: A Hugging Face id, a local folder, or ``tiny``: a small Llama built for the environment's text.
        hidden: Width of the tiny model.
        layers: Depth of the tiny model.
        heads: Attention heads of the tiny model.
        vocab_size: Vocabulary of the tiny model.
        dtype: Type of the parameters.
        threads: CPU threads of torch, or 0 for its own choice.
    """

    path: str = "tiny"
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    vocab_size: int = 1024
    dtype: str = "float32"
    threads: int = 0

    def torch_dtype(self) -> torch.dtype:
        """The torch type of that name."""
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"model.dtype is {self.dtype!r}: use float32, bfloat16 or float16")
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


def open_model(config: ModelConfig, run_seed: int, texts: Iterable[str] | None) -> tuple[Any, Any, Renderer]:
    """Load or build the model.

    Args:
        config: Which.
        run_seed: Seed of fresh weights.
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
        model, tokenizer, renderer = load_model(config.path, dtype)
        return _placed(model), tokenizer, renderer
    if texts is None:
        raise ConfigError("model.path=tiny has nothing to start from here: give the folder of an SFT run's model")
    tokenizer = tiny.train_tokenizer(texts, config.vocab_size)
    model = tiny.build_model(tokenizer, seeding.init_seed(run_seed), config.hidden, config.layers, config.heads)
    return _placed(prepare(model.to(dtype))), tokenizer, Renderer(HFTokenizer(tokenizer))


def _placed(model: Any) -> Any:
    return model.to("cuda").eval() if torch.cuda.is_available() else model.eval()
