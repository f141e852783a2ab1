"""Nothing that only the expert knows reaches the model."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from agentgym.checks.bench import Bench
from agentgym.checks.subject import Step, steps
from agentgym.env_worker import EnvPool, instructions_of
from agentgym.errors import EnvError
from agentgym.policies.base import Policy
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, Task
from agentgym.types import Message

_ANSWERS = re.compile(r"answer|solution|secret|gold|walkthrough|policy_commands", re.IGNORECASE)
_SHOWN = ("observation", "reward", "terminated", "truncated", "info['admissible_commands']", "info['success']")
_FEWEST_TURNS, _FEWEST_COMMANDS = 10, 3


def hints(bench: Bench) -> Iterator[str]:
    """Hints come only when asked for, and what the model is sent does not depend on them nor hold the answer."""
    played = bench.guided
    env = bench.make()
    for seed, guided in played.items():
        if found := _without(bench, env, seed, guided):
            yield f"seed {seed}, {found}"
            return
    instructions = instructions_of(env)
    leaks = Counter(key for guided in played.values() for key in _answers_in(instructions, guided[0]))
    for key, count in leaks.items():
        if count == len(played):  # in one prompt it may stand by chance, or in a question that names the choices
            yield f"info[{key!r}] stands in the first prompt of all {count} seeds"
    yield from _place_of_the_command([step for guided in played.values() for step in guided])
    if all("expert_action" in guided[0].info for guided in played.values()):
        yield from itertools.islice((found for seed in bench.seeds[:2] for found in _prompts_differ(bench, seed)), 1)


def _without(bench: Bench, env: gym.Env[str, str], seed: int, guided: list[Step]) -> str | None:
    """What is different when the same actions are played without hints."""
    asked = bench.options.get("expert") or bench.subject.kwargs.get("expert")
    actions = (step.action for step in guided[1:] if step.action is not None)
    plain = steps(env, seed, bench.options, actions)
    for number, (hinted, step) in enumerate(itertools.zip_longest(guided, plain)):
        where = f"step {number}" if number else "reset"
        if hinted is None or step is None:
            return f"{where}: with hints the episode ends elsewhere than without"
        if "expert_action" in step.info and not asked:
            return f"{where}: info holds expert_action={step.info['expert_action']!r}, for which nobody asked"
        left, right = hinted.frozen(), step.frozen()
        for name in _SHOWN:
            if left.get(name) != right.get(name):
                return f"{where}: {name} is {left.get(name)} with hints and {right.get(name)} without"
    return None


def _answers_in(instructions: str, start: Step) -> list[str]:
    """The keys of ``info`` that by their name hold an answer, and whose value the first prompt holds too."""
    prompt = f"{instructions}\n{start.observation}"
    found = []
    for key, value in start.info.items():
        if _ANSWERS.search(key):
            words = (re.escape(text) for text in _texts(value))
            if any(re.search(rf"(?<!\w){word}(?!\w)", prompt) for word in words):
                found.append(key)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif not isinstance(value, bool | None) and str(value).strip():
        yield str(value).strip()


def _place_of_the_command(played: list[Step]) -> Iterator[str]:
    """With the action codec ``choice`` the model sees ``admissible_commands``: their order may tell the answer."""
    turns = []
    for step in played:
        commands, action = step.info.get("admissible_commands") or [], step.info.get("expert_action")
        if action in commands and len(commands) > 1:
            turns.append((action, commands.index(action) + 1, len(commands) - commands.index(action)))
    if len(turns) < _FEWEST_TURNS or len({action for action, *_ in turns}) < _FEWEST_COMMANDS:
        return
    for side, places in (("start", {turn[1] for turn in turns}), ("end", {turn[2] for turn in turns})):
        if len(places) == 1:
            yield (
                f"in all {len(turns)} turns the expert's command is number {places.pop()} of admissible_commands, "
                f"counted from the {side}: sort them"
            )
            return


def _prompts_differ(bench: Bench, seed: int) -> Iterator[str]:
    """What real rollouts send to the model, with hints and without."""
    sent, actions = _rollout(bench, seed, ExpertPolicy())
    again, _ = _rollout(bench, seed, CannedPolicy(actions))
    for number, (one, other) in enumerate(zip(sent, again, strict=False)):
        if one != other:
            yield (
                f"seed {seed}: message {number} to the model is {one['content'][:200]!r} with hints "
                f"and {other['content'][:200]!r} without"
            )
            return


def _rollout(bench: Bench, seed: int, policy: Policy) -> tuple[list[Message], list[str]]:
    """The conversation and the actions."""
    env = bench.make()
    turns = bench.limit(env)[0]
    config = RolloutConfig(max_turns=turns, context_limit=10**9, codec="tool_call", concurrency=1, retries=0)
    with EnvPool(bench.subject.spec.id, bench.subject.kwargs) as pool:
        rollout = Rollout(pool, policy, config, bench.options)
        groups = rollout.collect([Task(seed, seed, "check", 0, 0)])
    if not groups:
        raise EnvError(f"a rollout failed: {rollout.stats.messages}")
    trajectory = groups[0].trajectories[0]
    return trajectory.messages, [turn.action for turn in trajectory.turns if turn.action is not None]
