"""The checks, each a function from a `Bench` to what went wrong, and the order in which they run."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from agentgym.checks import footprint, hints
from agentgym.checks.bench import ODD, Bench
from agentgym.checks.subject import NONSENSE, difference, differing, steps, transcript, transcripts
from agentgym.env_worker import instructions_of

_ACCIDENTS = (AttributeError, TypeError, LookupError, NameError, ArithmeticError)
"""Exceptions that come from the code and not from its author."""
_LARGE_SEEDS = (2**31, 2**32 + 1, 2**63 - 1)


def gymnasium(bench: Bench) -> Iterator[str]:
    """Gymnasium's own ``check_env`` passes, and it warns of nothing."""
    env = bench.make().unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_close_check=True)  # `close` does that
    for warning in caught:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(warning.message))
        if text.startswith("WARN: ") and "render_fps" not in text:  # text has no frames a second
            yield f"Gymnasium's check_env warns: {text.removeprefix('WARN: ')}"


def text(bench: Bench) -> Iterator[str]:
    """Observations are text inside the observation space, rewards finite numbers, ends truth values."""
    space = bench.make().observation_space
    for seed, number, step in bench.played:
        where = f"seed {seed}, step {number}"
        if not isinstance(step.observation, str):
            yield f"{where}: the observation is {type(step.observation).__name__}, not text"
        elif step.observation not in space:
            yield f"{where}: the observation of {len(step.observation)} characters is not in {space}"
        elif isinstance(step.reward, bool) or not math.isfinite(step.reward):
            yield f"{where}: the reward is {step.reward!r}, not a finite number"
        elif not {type(step.terminated), type(step.truncated)} <= {bool}:
            yield f"{where}: terminated is {step.terminated!r} and truncated {step.truncated!r}, not two truth values"
        else:
            continue
        return


def info(bench: Bench) -> Iterator[str]:
    """Every value in ``info`` can be written as JSON, or the class says in its docstring that it is there."""
    env = bench.make()
    found: dict[str, str] = {}
    for _, _, step in bench.played:
        for key, value in step.info.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                found.setdefault(str(key), str(error))
    documented = type(env.unwrapped).__doc__ or ""
    for key, reason in found.items():
        if key not in documented:
            yield f"info[{key!r}] cannot be written as JSON ({reason}) and the class does not document it"


def large_seeds(bench: Bench) -> Iterator[str]:
    """Seeds of 2**31 and above are taken, and mean the same each time."""
    env = bench.make()
    for seed in _LARGE_SEEDS:
        try:
            first, again = (next(steps(env, seed, bench.options, None)).frozen() for _ in range(2))
        except Exception as error:
            yield f"reset(seed={seed}) raised {type(error).__name__}: {error}"
            return
        if found := differing(first, again):
            yield f"two resets with seed={seed} differ: {found}"
            return


def deterministic(bench: Bench) -> Iterator[str]:
    """The same seed and actions give the same text, rewards and info, again and in another instance."""
    if bench.drift is not None:
        yield f"the same seed and actions, {bench.drift}"


def fresh_process(bench: Bench) -> Iterator[str]:
    """They give the same in another process, with other hashes of strings."""
    if found := difference(bench.seeds, bench.reference, bench.in_another_process()):
        yield f"the same seed and actions in another process, with another PYTHONHASHSEED: {found}"


def seeds_differ(bench: Bench) -> Iterator[str]:
    """Different seeds give different episodes somewhere."""
    env = bench.make()
    first = transcript(env, bench.seeds[0], bench.hinted)
    tried = dict.fromkeys((*bench.seeds[1:], *range(10)))
    if all(transcript(env, seed, bench.hinted) == first for seed in tried):
        yield f"seeds {bench.seeds[0]}, {', '.join(map(str, tried))} give the same episode: reset does not use its seed"


def interleaved(bench: Bench) -> Iterator[str]:
    """Two instances that are played in turns do not touch each other."""
    envs = bench.make(), bench.make()
    for (a, first), (b, second) in itertools.pairwise(zip(bench.seeds, bench.reference, strict=True)):
        one, two = (steps(env, seed, bench.hinted, None) for env, seed in zip(envs, (a, b), strict=True))
        pairs = itertools.zip_longest(itertools.islice(one, len(first)), itertools.islice(two, len(second)))
        left, right = [], []
        for x, y in pairs:
            left += [x.frozen()] if x else []
            right += [y.frozen()] if y else []
        if found := difference((a, b), (first, second), (left, right)):
            yield f"played in turns with another instance: {found}"
            return


def group(bench: Bench) -> Iterator[str]:
    """The members of a group start alike: same seed in fresh instances, and in one left in the middle of a game."""
    used, seed, other = bench.make(), bench.seeds[0], bench.seeds[1]
    for _ in itertools.islice(steps(used, other, bench.hinted, None), 4):
        pass
    starts = {}
    for name, env in (("a fresh instance", bench.make()), ("another", bench.make()), ("one left in a game", used)):
        start = next(steps(env, seed, bench.options, None)).frozen()
        starts[name] = {**start, "instructions": json.dumps(instructions_of(env))}
    (first, expected), *others = starts.items()
    for name, start in others:
        if found := differing(expected, start):
            yield f"reset(seed={seed}) of {first} and of {name} differ: {found}"


def global_rng(bench: Bench) -> Iterator[str]:
    """No global random generator is used: neither moved nor read."""
    reference = bench.reference
    with _seeded(1):
        before = _generators()
        seen = transcripts(bench.make(), bench.seeds, bench.hinted)
        after = _generators()
    for name, state in after.items():
        if name in before and state != before[name]:
            yield f"a game moved the global generator of {name}: draw from self.np_random"
    if bench.drift is None and (found := difference(bench.seeds, reference, seen)):
        yield f"a game depends on the seed of a global generator: {found}"


def _generators() -> dict[str, str]:
    states = {"random": repr(random.getstate()), "numpy.random": repr(np.random.get_state())}  # noqa: NPY002
    if "torch" in sys.modules:
        states["torch"] = str(sys.modules["torch"].get_rng_state().tolist())
    return states


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, and put them back."""
    torch = sys.modules.get("torch")
    old, old_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    old_torch = torch and torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(old)
        np.random.set_state(old_numpy)  # noqa: NPY002
        if torch:
            torch.set_rng_state(old_torch)


def misuse(bench: Bench) -> Iterator[str]:
    """A step before ``reset`` and a step after the end are clear errors."""
    env = bench.make()
    yield from _refused(env, "a step before reset")
    last = bench.play(env, bench.seeds[0], itertools.repeat(NONSENSE[1]))
    if last.over:
        yield from _refused(env, "a step after the end")


def _refused(env: Any, what: str) -> Iterator[str]:
    try:
        env.step(NONSENSE[1])
    except _ACCIDENTS as error:
        yield f"{what} raised {type(error).__name__}: {error}; raise gymnasium.error.ResetNeeded with a message"
    except Exception as error:
        if not str(error).strip():
            yield f"{what} raised {type(error).__name__} without a message"
    else:
        yield f"{what} was taken as if nothing were wrong; raise gymnasium.error.ResetNeeded"


def odd_actions(bench: Bench) -> Iterator[str]:
    """Whatever a model writes is data: no text of an action raises, and the game can be played on."""
    env = bench.make()
    over = True
    for action in ODD:
        try:
            if over:
                env.reset(seed=bench.seeds[0], options=dict(bench.options))
            _, _, terminated, truncated, _ = env.step(action)
        except Exception as error:
            yield f"the action {action[:40]!r} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return
        over = terminated or truncated
    played = transcript(env, bench.seeds[0], bench.hinted)
    if bench.drift is None and (found := difference(bench.seeds[:1], bench.reference[:1], [played])):
        yield f"after odd actions the next game is another one: {found}"


def ends(bench: Bench) -> Iterator[str]:
    """Every episode ends within its limit, whatever is done."""
    env = bench.make()
    limit, source = bench.limit(env)
    for seed in bench.seeds[:2]:
        for name, actions in (("nonsense", itertools.cycle(NONSENSE)), ("random commands", None)):
            last = bench.play(env, seed, actions)
            if not last.over:
                yield f"seed {seed}: {name} did not end the episode within {limit} steps ({source})"
                return


def expert(bench: Bench) -> Iterator[str]:
    """The expert, asked for with the option ``expert``, succeeds with the highest score."""
    for seed, played in bench.guided.items():
        number, step = len(played) - 1, played[-1]
        if "expert_action" not in played[0].info:
            yield "reset(options={'expert': True}) gives no expert_action in info; skip this check if there is none"
            return
        where = f"seed {seed}: the expert"
        if not step.over:
            yield f"{where} stopped after {number} steps with expert_action={step.info.get('expert_action')!r}"
        elif not step.info.get("success"):
            yield f"{where} ended after {number} steps with success={step.info.get('success', 'absent')!r}"
        elif step.info.get("score", 0) < step.info.get("max_score", -math.inf):
            yield f"{where} won with a score of {step.info.get('score')} of {step.info.get('max_score')}"
        else:
            continue
        return


def silent(bench: Bench) -> Iterator[str]:
    """A policy that says nothing, or nonsense, does not succeed."""
    env = bench.make()
    for seed in bench.seeds:
        for action in NONSENSE:
            last = bench.play(env, seed, itertools.repeat(action))
            if last.info.get("success"):
                yield f"seed {seed}: the action {action!r}, repeated, succeeds"
                return


CHECKS: dict[str, Callable[[Bench], Iterator[str]]] = {
    check.__name__: check
    for check in (
        *(gymnasium, text, info, large_seeds, deterministic, global_rng, fresh_process, seeds_differ, interleaved),
        *(group, misuse, odd_actions, ends, expert, silent, hints.hints, footprint.growth, footprint.close),
    )
}
"""Name to check, in the order in which they run."""

NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("interleaved", "group"), ("deterministic",)),
    "fresh_process": ("deterministic", "global_rng"),
    "hints": ("deterministic", "text"),
}
"""Checks that say nothing while another one fails."""
