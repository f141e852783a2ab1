"""Every error a user can meet. The message names the thing at fault and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentGymError(Exception):
    """Base class: the CLI prints it as one line and exits with code 2."""


class ConfigError(AgentGymError):
    """A wrong option, key, id or path given by the user."""


class MissingDependency(AgentGymError):
    """A Python package or system part that is not installed."""


class EnvError(AgentGymError):
    """The environment failed; never the agent's fault."""


class JudgeError(EnvError):
    """The judge of an answer cannot be reached, or gives no verdict; never the agent's fault."""


class SandboxError(AgentGymError):
    """The sandbox failed; never the agent's fault."""


class EngineError(AgentGymError):
    """The inference engine failed."""


class TooManyFailures(AgentGymError):
    """So many episodes failed for reasons outside the policy that the run stopped."""


class ContextFull(AgentGymError):
    """A prompt does not fit into the context window."""


class TemplateError(AgentGymError):
    """A chat template that cannot be rendered incrementally."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not among the choices, with the nearest ones as a hint."""
    options = sorted(choices)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(options)}"
    return ConfigError(f"unknown {kind} {name!r}: {hint}")


def missing(module: str, extra: str) -> MissingDependency:
    """Build the error for an optional Python package that is not installed."""
    return MissingDependency(f"{module} is not installed: pip install 'agentgym-lab[{extra}]'")
