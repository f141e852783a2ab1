"""How a server of vLLM gets the weights: all of them in place, or adapters alone beside a model that stays."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors.torch import save_file

from agentgym.errors import ConfigError
from agentgym.learner import lora
from agentgym.learner.vision import vision_of
from agentgym.policies.vllm_client import Answer, VLLMClient

if TYPE_CHECKING:
    from agentgym.policies.vllm_local import LocalEngine

Client: TypeAlias = "VLLMClient | LocalEngine"

Command = Callable[..., None]
"""Says something to a server, a path and what goes with it, before a deadline."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Room for adapters that vLLM can make."""
_START_S = 60.0
_KEPT = 4
"""Adapters whose files stay: a turn that an old one began may need them again."""


class Merged:
    """Every version is a whole model, with adapters added to its weights; servers stop to read it.

    Attributes:
        start_folder: What a server is started with.
    """

    start_folder: Path
    sleep_level = 2
    """What a server forgets when it sleeps: 1 keys and values, its weights move to the host; 2 the weights too."""

    def __init__(self) -> None:
        self._version = 0

    def flags(self, model: Any) -> list[str]:
        """Arguments of servers."""
        return []

    def name(self, number: int) -> str | None:
        """What a request calls the weights that a server has."""
        return None

    def labelled(self, answer: Answer, name: str | None) -> Answer:
        """An answer with the version of each token, which the server counted."""
        return answer

    def save(self, parent: Path, version: int, model: Any, tokenizer: Any) -> None:
        """Write a version where servers read it."""
        self._version, self.start_folder = version, parent / f"v{version}"
        _save(self.start_folder, served_state(model), model, tokenizer)

    def give(self, number: int, client: Client, timeout: float, asleep: bool = False) -> None:
        """Let a server that runs, or sleeps, take the newest version.

        Raises:
            EngineError: If it does not within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout

        def command(path: str, query: dict[str, str] | None = None, **body: Any) -> None:
            client.order(path, body, max(1.0, deadline - time.monotonic()), **(query or {}))

        command("/pause", {"mode": "abort"})
        if asleep:
            command("/wake_up", {"tags": "weights"})
        self.hand_over(number, client, command, max(1.0, deadline - time.monotonic()))
        if asleep:
            command("/wake_up", {"tags": "kv_cache"})
        command("/reset_prefix_cache")
        command("/update_weight_version", new_version=str(self._version))
        command("/resume")

    def hand_over(self, number: int, client: Client, command: Command, timeout: float) -> None:
        """Let a server that is paused read the newest version."""
        command("/collective_rpc", method="reload_weights", kwargs={"weights_path": str(self.start_folder)})

    def started(self, number: int, client: Client) -> None:
        """Do what is left to do for a server that was just started."""
        client.order("/update_weight_version", {"new_version": str(self._version)}, _START_S)

    def clear(self, parent: Path) -> None:
        """Remove what no server needs any more."""
        for old in parent.glob("v*"):
            if old != self.start_folder:
                shutil.rmtree(old, ignore_errors=True)


class Adapters(Merged):
    """Servers keep the model without adapters; every version is an adapter of another name beside it."""

    sleep_level = 1

    def __init__(self) -> None:
        super().__init__()
        self._folders: list[Path] = []
        self._versions: dict[str, int] = {}
        self._loaded: dict[int, list[str]] = {}

    def flags(self, model: Any) -> list[str]:
        """Arguments of servers."""
        rank = model.active_peft_config.r
        if rank > _RANKS[-1]:
            raise ConfigError(f"model.lora.rank is {rank}: vLLM serves adapters up to {_RANKS[-1]}; use merged weights")
        room = next(room for room in _RANKS if room >= rank)
        return ["--enable-lora", "--max-lora-rank", str(room), "--max-loras", "2", "--max-cpu-loras", str(_KEPT)]

    def name(self, number: int) -> str | None:
        """What a request calls the adapter that a server has."""
        loaded = self._loaded.get(number)
        return loaded[-1] if loaded else None

    def labelled(self, answer: Answer, name: str | None) -> Answer:
        """An answer with the version of the adapter that wrote all of it."""
        return dataclasses.replace(answer, versions=[self._versions[name or ""]] * len(answer.ids))

    def save(self, parent: Path, version: int, model: Any, tokenizer: Any) -> None:
        """Write an adapter, and the model without it where that was not done."""
        if not self._folders:
            self.start_folder = parent / "base"
            _save(self.start_folder, _untied(lora.base_state(model), model), model, tokenizer)
        folder = parent / f"v{version}-{len(self._folders)}"
        self._versions[_name(folder)] = version
        self._folders.append(folder)
        model.save_pretrained(folder, save_embedding_layers=False)

    def give(self, number: int, client: Client, timeout: float, asleep: bool = False) -> None:
        """Let a server that runs, or sleeps, load the newest adapter; requests name it from then on."""
        if asleep:
            client.order("/wake_up", {}, timeout)
        loaded = self._loaded.setdefault(number, [])
        loaded.append(self._load(client, timeout))
        while len(loaded) > _KEPT:
            client.order("/v1/unload_lora_adapter", {"lora_name": loaded.pop(0)}, timeout)

    def started(self, number: int, client: Client) -> None:
        """Let a server that was just started load the newest adapter."""
        self._loaded[number] = [self._load(client, _START_S)]

    def _load(self, client: Client, timeout: float) -> str:
        client.order("/update_weight_version", {"new_version": "0"}, timeout)  # it must count; `labelled` knows better
        folder = self._folders[-1]
        client.order("/v1/load_lora_adapter", {"lora_name": _name(folder), "lora_path": str(folder)}, timeout)
        return _name(folder)

    def clear(self, parent: Path) -> None:
        """Remove adapters that no server needs any more."""
        for old in self._folders[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def _name(folder: Path) -> str:
    """What a server calls the adapter in a folder; another run at the same server has another parent."""
    return f"{folder.parent.name}-{folder.name}"


def served_state(model: Any) -> dict[str, Any]:
    """The weights that are served: adapters merged, and tied ones untied, which vLLM would keep as they were."""
    return _untied(lora.merged_state(model) if lora.is_adapted(model) else model.state_dict(), model)


def _untied(state: dict[str, Any], model: Any) -> dict[str, Any]:
    return {**state, "lm_head.weight": model.get_output_embeddings().weight}


def _save(folder: Path, state: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """Write a checkpoint of weights that are not tied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    taken: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        state[name] = tensor.clone() if tensor.data_ptr() in taken else tensor.contiguous()
        taken.add(state[name].data_ptr())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = type(model.config).from_dict(model.config.to_dict())
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vision = vision_of(model)
    if vision is not None:
        vision.processor.save_pretrained(folder)
