"""`check_agent_env`: does an environment keep the promises that training a language model in it rests on?

The checks run in a process of their own, so that they can count what an environment leaves behind, and so that one
that hangs or takes its process down is a finding and not the end of the program that asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from agentgym.checks.catalogue import CHECKS, NEEDS
from agentgym.checks.process import Gone, Process
from agentgym.checks.subject import Subject
from agentgym.env_worker import check_id
from agentgym.errors import ConfigError, unknown
from agentgym.registration import entry_of

__all__ = ["CHECKS", "Failure", "Report", "check_agent_env"]


@dataclass(frozen=True)
class Failure:
    """Something that an environment did wrong.

    Attributes:
        check: Name of the check, a key of `CHECKS`.
        message: One sentence with what was seen.
    """

    check: str
    message: str


@dataclass
class Report:
    """What the checks found.

    Attributes:
        env: Gymnasium id, or the name of the factory.
        kwargs: Arguments the environment was made with.
        failures: What went wrong, in the order of the checks.
        ran: Names of the checks that ran.
        skipped: Names of the checks that did not run, with the reason.
        seconds: How long it took.
    """

    env: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return {"passed": self.passed, **found}

    def __str__(self) -> str:
        lines = []
        for name in CHECKS:
            found = [f"{name:<14} FAILED  {f.message}" for f in self.failures if f.check == name]
            if name in self.skipped:
                found = [f"{name:<14} not run: {self.skipped[name]}"]
            lines += found or [f"{name:<14} ok"]
        verdict = f"{len({f.check for f in self.failures})} failed" if self.failures else "all passed"
        return "\n".join([*lines, f"{self.env}: {len(self.ran)} checks in {self.seconds:.1f} s, {verdict}"])


def check_agent_env(
    env: str | Callable[..., gym.Env[Any, Any]],
    kwargs: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    skip: Sequence[str] = (),
    timeout: float = 300.0,
    on_check: Callable[[str], None] | None = None,
) -> Report:
    """Check an environment for language models; `CHECKS` says what is looked at.

    Args:
        env: Gymnasium id (``module:my/Task-v0`` imports the module that registers it), or a class or function that
            makes the environment.
        kwargs: Arguments of ``gym.make``, or of the class or function.
        options: Options of every ``reset``; ``expert`` is added where hints are wanted.
        seeds: Seeds of the episodes that are played, two at least.
        skip: Names of checks that do not apply, such as ``expert`` for an environment without one; those that the table
            of environments names are left out too.
        timeout: Seconds that a check may take.
        on_check: Called with the name of a check when it is over.

    Returns:
        What was found.

    Raises:
        ConfigError: If there is no such environment or check, or an argument is wrong.
        MissingDependency: If its engine is not installed.
        EnvError: If it cannot be made.
    """
    for name in skip:
        if name not in CHECKS:
            raise unknown("check", name, CHECKS)
    if len(set(seeds)) < 2 or min(seeds) < 0:
        raise ConfigError(f"seeds {list(seeds)}: give two different ones at least, of 0 or more")
    spec = _spec(env)
    subject = Subject(spec, dict(kwargs or {}), dict(options or {}), tuple(seeds))
    entry = entry_of(env) if isinstance(env, str) else None
    known = entry.skips if entry else {}
    report = Report(env if isinstance(env, str) else spec.id, subject.kwargs)
    started = time.monotonic()
    process = Process(subject)
    try:
        process.make(timeout)
        for name in CHECKS:
            failed = {f.check for f in report.failures}
            if name in known:
                report.skipped[name] = known[name]
            elif name in skip:
                report.skipped[name] = "asked not to"
            elif needed := failed.intersection(NEEDS.get(name, ())):
                report.skipped[name] = f"it says nothing while {sorted(needed)[0]} fails"
            else:
                try:
                    messages = process.check(name, timeout)
                except Gone as gone:
                    messages = [str(gone)]
                report.ran.append(name)
                report.failures += [Failure(name, message) for message in messages]
            if on_check:
                on_check(name)
    finally:
        process.close()
    report.seconds = time.monotonic() - started
    return report


def _spec(env: str | Callable[..., gym.Env[Any, Any]]) -> EnvSpec:
    """The specification of an id, or one made for a class or function."""
    if isinstance(env, str):
        check_id(env)
        return gym.spec(env.rpartition(":")[2])
    if not callable(env):
        raise ConfigError(f"cannot check {type(env).__name__}: give an id, or a class or function that makes it")
    name = "".join(c for c in getattr(env, "__name__", "Env") if c.isalnum() or c == "_") or "Env"
    return EnvSpec(f"check/{name}-v0", entry_point=env, order_enforce=False, disable_env_checker=True)
