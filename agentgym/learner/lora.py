"""LoRA through peft: the base model stays as it is, small adapters are trained and saved beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentgym.errors import ConfigError, missing

ADAPTER = "adapter_config.json"


@dataclass
class LoraConfig:
    """Low-rank adapters (2106.09685).

    Attributes:
        rank: Rank of the adapters; 0 trains the whole model instead.
        alpha: The adapters' output is scaled by alpha / rank.
        targets: Which linear layers get one: ``all-linear`` (all but the output layer), or names such as
            ``q_proj,v_proj``.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"model.lora.rank is {self.rank}: it must be 0 (no LoRA) or more")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"model.lora.alpha is {self.alpha}: it must be above 0")
        if not self.targets.replace(",", " ").split():
            raise ConfigError("model.lora.targets is empty: use all-linear, or names of layers such as q_proj,v_proj")


def add_adapter(model: Any, config: LoraConfig, seed: int) -> Any:
    """Put fresh adapters into a model; it computes what it did before until they are trained.

    Args:
        model: A prepared model.
        config: Their size and place.
        seed: Seed of their weights.

    Raises:
        ConfigError: If no layer has one of the names.
        MissingDependency: If peft is not installed.
    """
    peft = _peft()
    targets: Any = [name.strip() for name in config.targets.split(",")]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    if Path(model.name_or_path).is_dir():  # the adapter's folder will lie elsewhere
        model.name_or_path = str(Path(model.name_or_path).resolve())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            known = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
            raise ConfigError(
                f"model.lora.targets is {config.targets!r}: the model's linear layers are {', '.join(known)}"
            ) from error


def base_of(folder: Path) -> str:
    """The model that the adapter in a folder belongs to."""
    peft = _peft()
    try:
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    except Exception as error:  # damaged files raise all kinds
        raise ConfigError(f"the adapter in {folder} is damaged: {error}") from error
    if not base:
        raise ConfigError(f"the adapter in {folder} does not say which model it belongs to (base_model_name_or_path)")
    return str(base)


def load_adapter(model: Any, folder: Path, rank: int) -> Any:
    """Load a saved adapter into its base model.

    Args:
        model: The base model.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        rank: Its rank, to go on training it; 0 merges it into the weights.

    Raises:
        ConfigError: If it has another rank, or does not fit the model.
    """
    peft = _peft()
    try:
        loaded = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=bool(rank))
    except Exception as error:  # damaged files raise all kinds
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ConfigError(f"the adapter in {folder} cannot be loaded: {reason}") from error
    load_weights(loaded, folder)
    found = loaded.active_peft_config.r
    if rank and rank != found:
        raise ConfigError(f"model.lora.rank is {rank}, but the adapter in {folder} has rank {found}: use {found}")
    return loaded if rank else loaded.merge_and_unload()


def load_weights(model: Any, folder: Path) -> None:
    """Take the weights of a saved adapter.

    Raises:
        ConfigError: If they are not those of this model's adapters.
    """
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    if saved.keys() != get_peft_model_state_dict(model, save_embedding_layers=False).keys():
        raise ConfigError(f"{folder}: the adapter belongs to another model, or to other layers, than the config says")
    set_peft_model_state_dict(model, saved)


def base_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of an adapted model without its adapters, under the names of the model without."""
    inner = model.get_base_model().state_dict()
    return {n.replace(".base_layer", ""): t for n, t in inner.items() if ".lora_" not in n}


@torch.no_grad()
def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of an adapted model with its adapters added to them, under the names of the model without."""
    state = base_state(model)
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight") and (adapter := module.active_adapters[0]) in module.lora_A:
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight(adapter)
    return state


def is_adapted(model: Any) -> bool:
    """Whether a model holds adapters of peft."""
    return hasattr(model, "peft_config")


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing("peft", "lora") from error
    return peft
