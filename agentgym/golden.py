"""Golden transcripts: what an environment says today, in a file, so that a change of it cannot go unnoticed.

A file is a line of JSON (environment, arguments, seeds, versions of the engine) and then the episodes, in which the
expert plays, with a random command now and then: ``|`` before what is said, ``>`` before the action, and lines with the
commands, the reward and what has changed among the scalars of ``info``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentgym import store
from agentgym.doctor import engine_versions
from agentgym.env_worker import instructions_of, make_env
from agentgym.errors import ConfigError

_KEY = "agentgym_golden"
_VERSION = 1
_NOISE = 0.2
_LONGEST_NAME = 100
SEEDS, STEPS = (0, 1), 20


def path_of(folder: Path, env_id: str, kwargs: dict[str, Any]) -> Path:
    """The file of an environment with these arguments."""
    settings = "".join(f".{key}={value}" for key, value in sorted(kwargs.items()))
    name = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in f"{env_id.rpartition('/')[2]}{settings}")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return folder / f"{name}.txt"


def record(env_id: str, kwargs: dict[str, Any], seeds: Sequence[int] = SEEDS, steps: int = STEPS) -> str:
    """Play and write down.

    Args:
        env_id: Gymnasium id.
        kwargs: Arguments of ``gym.make``.
        seeds: An episode each.
        steps: Most steps of an episode.

    Raises:
        AgentGymError: If the environment cannot be made or fails.
    """
    header = {_KEY: _VERSION, "env": env_id, "kwargs": kwargs, "seeds": list(seeds), "steps": steps}
    header["engine"] = engine_versions(env_id)
    env = make_env(env_id, kwargs)
    try:
        lines = [json.dumps(header)]
        for seed in seeds:
            lines += itertools.chain([f"seed {seed}"], _episode(env, seed, steps))
    finally:
        env.close()
    return "\n".join(lines) + "\n"


def _episode(env: Any, seed: int, steps: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options={"expert": True})
    yield from _quoted(instructions_of(env))
    yield from _said(observation, {}, info)
    for _ in range(steps):
        commands, hint = info.get("admissible_commands") or [], info.get("expert_action")
        action = hint if hint and (rng.random() >= _NOISE or not commands) else None
        if action is None and not commands:
            yield "no command left"
            return
        action = action or str(commands[int(rng.integers(len(commands)))])
        before = info
        observation, reward, terminated, truncated, info = env.step(action)
        yield f"> {json.dumps(action, ensure_ascii=False)[1:-1]}"
        yield from _said(observation, before, info)
        yield f"reward {float(reward)!r}"
        if terminated or truncated:
            yield "terminated" if terminated else "truncated"
            return


def _said(observation: str, before: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    """The observation, the commands, and the scalars of ``info`` that have changed."""
    yield from _quoted(observation)
    yield f"commands {'; '.join(info.get('admissible_commands') or [])}"
    scalars = {k: v for k, v in sorted(info.items()) if isinstance(v, bool | int | float | str | None)}
    changed = {k: v for k, v in scalars.items() if k not in before or before[k] != v}
    if changed:
        yield f"info {json.dumps(changed, ensure_ascii=False)}"


def _quoted(text: str) -> Iterator[str]:
    return (f"| {line}" for line in text.encode(errors="replace").decode().split("\n"))


def write(path: Path, env_id: str, kwargs: dict[str, Any]) -> None:
    """Record an environment into a file.

    Raises:
        AgentGymError: If the environment cannot be made or fails.
        OSError: If the file cannot be written; an older one stays as it is.
    """
    text = record(env_id, kwargs)
    with store.atomic_file(path) as file:
        file.write(text.encode())


def compare(path: Path) -> str | None:
    """Play what a file holds again, and say where it differs first; None if it does not.

    Raises:
        ConfigError: If there is no such file or it is no golden transcript.
        AgentGymError: If the environment cannot be made or fails.
    """
    old = _read(path)
    header = json.loads(old[0])
    new = record(header["env"], header["kwargs"], header["seeds"], header["steps"]).split("\n")
    for number, (before, now) in enumerate(itertools.zip_longest(old, new), start=1):
        if number > 1 and before != now:
            break
    else:
        return None
    versions = engine_versions(header["env"])
    because = f" (written with {header['engine']}, installed is {versions})" if versions != header["engine"] else ""
    return (
        f"{path}, line {number}: {_shown(before)} was written, {_shown(now)} comes now{because}. A change of text, "
        "commands, reward or dynamics needs a new version of the id; then write the file anew with "
        f"agentgym check {header['env']} --golden {path.parent} --write"
    )


def _shown(line: str | None) -> str:
    return "the end" if line is None else repr(line if len(line) <= 120 else f"{line[:120]}...")


def _read(path: Path) -> list[str]:
    """The lines of a file with a header that can be played."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        header = json.loads(lines[0])
        if header[_KEY] != _VERSION:
            raise ConfigError(f"{path}: golden transcript of version {header[_KEY]}; this agentgym has {_VERSION}")
        kinds = {"env": str, "kwargs": dict, "seeds": list, "steps": int, "engine": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(header[key], kind)]
        if wrong or not all(isinstance(seed, int) and seed >= 0 for seed in header["seeds"]):
            raise ConfigError(f"{path}: wrong {wrong[0] if wrong else 'seeds'} in the first line")
    except OSError as error:
        raise ConfigError(f"no golden transcript {path}: write it with --write") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a golden transcript ({type(error).__name__}: {error}); use --write") from error
    return lines
