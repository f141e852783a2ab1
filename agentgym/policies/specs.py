"""Policies by name, as the command line writes them."""

from __future__ import annotations

from agentgym.errors import ConfigError, missing, unknown
from agentgym.policies.base import Policy
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, RandomPolicy

SPECS = {
    "expert": "the environment's own expert",
    "random": "a random admissible command",
    "canned:A;B;...": "the actions A, B, ..., the last one repeated",
    "hf:FOLDER": "a transformers model, by folder or Hugging Face id",
}


def make_policy(spec: str, threads: int = 0) -> Policy:
    """Make the policy that ``spec`` names (see `SPECS`).

    Args:
        spec: The name.
        threads: CPU threads of torch for a model, 0 for its own choice.

    Raises:
        ConfigError: For an unknown name or a model that cannot be loaded.
        MissingDependency: If a model is asked for without torch and transformers.
    """
    kind, _, rest = spec.partition(":")
    if spec == "expert":
        return ExpertPolicy()
    if spec == "random":
        return RandomPolicy()
    if kind == "canned":
        return CannedPolicy([a.strip() for a in rest.split(";") if a.strip()])
    if kind != "hf":
        raise unknown("policy", spec, SPECS)
    if not rest:
        raise ConfigError("policy hf: needs a folder or a Hugging Face id: hf:runs/quickstart/grpo/final")
    try:
        from agentgym.learner.setup import ModelConfig, open_model
        from agentgym.policies.hf import HFPolicy
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "train") from error
    model, _, renderer = open_model(ModelConfig(path=rest, threads=threads), 0, None)
    return HFPolicy(model, renderer, spec)
