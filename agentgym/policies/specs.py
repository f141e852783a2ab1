"""Policies by name, as the command line writes them."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from agentgym.errors import ConfigError, missing, unknown
from agentgym.policies.base import Policy
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, RandomPolicy

if TYPE_CHECKING:
    from agentgym.rollout import RolloutConfig

SPECS = {
    "expert": "the environment's own expert",
    "random": "a random admissible command",
    "canned:A;B;...": "the actions A, B, ..., the last one repeated",
    "hf:FOLDER": "a transformers model, by folder or Hugging Face id",
    "vllm:FOLDER": "the same, decoded by a server of vLLM; what it samples does not repeat itself",
    "openai:MODEL@URL": "a model behind an OpenAI-compatible chat endpoint; the key is in OPENAI_API_KEY",
    "react:POLICY": "a model that is told to reason before it acts; Werewolf",
    "recon:POLICY": "a model that thinks of how others see it before it answers; Werewolf",
    "sla:POLICY": "a model that deduces roles and chooses among several answers; Werewolf",
}

_PROMPTED = {
    "react": ("agentgym.envs.werewolf_agents", "ReActPolicy"),
    "recon": ("agentgym.envs.werewolf_agents", "ReConPolicy"),
    "sla": ("agentgym.envs.werewolf_sla", "SLAPolicy"),
}
_LOADED = ("hf", "vllm")
_MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def make_policy(
    spec: str, threads: int = 0, rollout: RolloutConfig | None = None, logs: Path = Path("runs/vllm")
) -> Policy:
    """Make the policy that ``spec`` names (see `SPECS`).

    Args:
        spec: The name.
        threads: CPU threads of torch for a model, 0 for its own choice.
        rollout: Says how many tokens and episodes at a time a server must have room for.
        logs: Folder for what a server writes.

    Returns:
        The policy. One with a server is a context manager, and ends the server; the end of this process does too.

    Raises:
        ConfigError: For an unknown name or a model that cannot be loaded or served.
        EngineError: If its server does not start.
        MissingDependency: If a model is asked for without torch and transformers, or an endpoint without openai.
    """
    kind, _, rest = spec.partition(":")
    if spec == "expert":
        return ExpertPolicy()
    if spec == "random":
        return RandomPolicy()
    if kind == "canned":
        return CannedPolicy([a.strip() for a in rest.split(";") if a.strip()])
    if kind == "openai":
        return _openai(rest, spec)
    if kind in _PROMPTED:
        return _prompted(kind, rest, threads)
    if kind not in _LOADED:
        raise unknown("policy", spec, SPECS)
    if not rest:
        raise ConfigError(f"policy {kind}: needs a folder or a Hugging Face id: {kind}:runs/quickstart/grpo/final")
    try:
        from agentgym.learner.setup import ModelConfig, open_model
        from agentgym.policies.hf import HFPolicy
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "train") from error
    model, tokenizer, renderer = open_model(ModelConfig(path=rest, threads=threads), 0, None)
    if kind == "hf":
        return HFPolicy(model, renderer, spec)
    from agentgym.policies.decode import DecodeConfig
    from agentgym.policies.vllm import VLLMPolicy
    from agentgym.rollout import RolloutConfig

    room = rollout or RolloutConfig()
    decode = DecodeConfig(backend="vllm")
    served = VLLMPolicy(model, tokenizer, renderer, decode, logs, room.context_limit, room.concurrency, spec)
    served.weights_changed(0)
    return served


def fingerprint(spec: str) -> str:
    """A hash of the files of a local model, "" for a policy whose name says it all or that lies elsewhere.

    Every byte of the weights, the config and the tokenizer counts: a model that was trained on in the same folder is
    another one.
    """
    kind, _, rest = spec.partition(":")
    if kind in _PROMPTED:
        return fingerprint(rest)
    folder = Path(rest).expanduser()
    if kind not in _LOADED or not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in _MODEL_FILES and p.is_file()):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _prompted(kind: str, rest: str, threads: int) -> Policy:
    if rest.partition(":")[0] not in ("hf", "openai"):
        raise ConfigError(f"policy {kind}: needs a model: {kind}:hf:FOLDER or {kind}:openai:MODEL@URL")
    module, name = _PROMPTED[kind]
    found: Policy = getattr(importlib.import_module(module), name)(make_policy(rest, threads))
    return found


def _openai(rest: str, spec: str) -> Policy:
    match = re.fullmatch(r"(.+)@(https?://.+)", rest)
    if match is None:
        raise ConfigError("policy openai: needs a model and an address: openai:MODEL@http://127.0.0.1:8000/v1")
    try:
        from agentgym.policies.openai import OpenAIPolicy
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "openai") from error
    return OpenAIPolicy(match[1], match[2], spec)
