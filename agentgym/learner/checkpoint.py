"""Checkpoints from which a run goes on bit by bit: transformers loads the model, peft the adapter of LoRA."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agentgym.errors import ConfigError
from agentgym.learner import lora
from agentgym.learner.vision import vision_of

_STATE = "trainer_state.pt"


class DamagedCheckpoint(ConfigError):
    """A checkpoint that cannot be read."""


def save_model(folder: Path, model: Any, tokenizer: Any) -> None:
    """Save weights and tokenizer; the folder appears whole or not at all."""
    _atomically(folder, lambda tmp: _write_model(tmp, model, tokenizer, published=True))


def save(folder: Path, model: Any, tokenizer: Any, state: dict[str, Any], keep: int = 2) -> None:
    """Save a checkpoint, unless it is there already, and remove all but the newest ``keep`` beside it.

    Args:
        folder: ``.../checkpoints/step_00010``.
        model: Its weights, or those of its adapters, go into safetensors.
        tokenizer: Saved beside them.
        state: Optimizer and counters; tensors and plain values only.
        keep: Checkpoints to keep.
    """
    if (folder / _STATE).is_file():
        return

    def write(tmp: Path) -> None:
        _write_model(tmp, model, tokenizer, published=False)
        torch.save(state, tmp / _STATE)

    _atomically(folder, write)
    for old in _complete(folder.parent)[:-keep]:
        shutil.rmtree(old)


def resume(folder: Path, learner: Any, own: dict[str, Any] | None = None) -> int:
    """Put a learner where the newest checkpoint in ``folder`` left it, and remove what a kill left half-written.

    One that is damaged is set aside, with a warning, and the one before is taken.

    Args:
        folder: ``.../checkpoints``.
        learner: Takes up weights, optimizer and counters.
        own: A trainer's own state, updated in place.

    Returns:
        The step to go on from; 0 if there is no checkpoint.
    """
    for unfinished in folder.glob(".step_*.tmp-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    found = _complete(folder)
    if not found:
        return 0
    while True:
        last = found.pop()
        try:
            state = restore(last, learner.model)
            break
        except DamagedCheckpoint as error:
            if not found:
                raise
            aside = last.with_name(f"damaged_{last.name}")
            shutil.rmtree(aside, ignore_errors=True)
            last.rename(aside)
            warnings.warn(f"{error}; going on from {found[-1].name}, the damaged one is now {aside}", stacklevel=2)
    learner.load_state(state)
    if own is not None:
        own.update(state.get("trainer", {}))
    return int(state["step"])


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder of checkpoints, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def restore(folder: Path, model: Any) -> dict[str, Any]:
    """Load the weights of a checkpoint into the model and return its state.

    Raises:
        DamagedCheckpoint: If a file is missing or damaged.
        ConfigError: If it belongs to another model.
    """
    try:
        if lora.is_adapted(model):
            lora.load_weights(model, folder)
        else:
            state = load_file(folder / "model.safetensors")
            missing, unexpected = model.load_state_dict(state, strict=False)
            tied = set(getattr(model, "_tied_weights_keys", None) or [])
            if set(missing) - tied or unexpected:
                raise ConfigError(f"{folder}: the checkpoint belongs to another model than the config says")
        saved: dict[str, Any] = torch.load(folder / _STATE, weights_only=True)
    except ConfigError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{folder} is damaged ({reason})") from error
    return saved


def _write_model(folder: Path, model: Any, tokenizer: Any, published: bool) -> None:
    """Save weights, under the names of the published models of their family or those that the module has now."""
    adapted = lora.is_adapted(model)
    model.save_pretrained(
        folder, **({"save_embedding_layers": False} if adapted else {"save_original_format": published})
    )
    tokenizer.save_pretrained(folder)
    if (vision := vision_of(model)) is not None:
        vision.processor.save_pretrained(folder)


def _atomically(folder: Path, write: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        write(tmp)
        for file in tmp.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        tmp.rename(folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit() and (p / _STATE).is_file()]
    return sorted(found, key=lambda p: int(p.name[5:]))
