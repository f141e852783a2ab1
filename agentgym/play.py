"""``agentgym play``: an episode in the terminal, with actions from a person or from a policy."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import gymnasium as gym

from agentgym.env_worker import EnvPool, instructions_of
from agentgym.errors import EnvError
from agentgym.policies.base import Policy
from agentgym.rollout import Rollout, RolloutConfig, Task

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_HELP = "Type a command. ? lists the commands, q quits."


def by_hand(env: gym.Env[str, str], seed: int, options: dict[str, Any]) -> int:
    """Let a person play one episode.

    Args:
        env: The environment; it is closed at the end.
        seed: Seed of the episode.
        options: Options of ``reset``.

    Returns:
        Exit code: 0, or 130 if Ctrl-C ended it.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then has a history and arrow keys)
    total, count, over = 0.0, 0, ""
    try:
        observation, info = env.reset(seed=seed, options=dict(options))
        say(f"{instructions_of(env)}\n{_HELP}\n\n{observation}")
        while not over and (action := _ask(info)) is not None:
            observation, reward, terminated, truncated, info = env.step(action)
            total, count = total + float(reward), count + 1
            say(f"{observation}{_earned(float(reward), info)}")
            over = "The episode is over" if terminated else "No more steps" if truncated else ""
        say(f"\n{over or 'You quit'}: {_summary(total, count, info.get('success'))}")
        return 0
    except KeyboardInterrupt:
        say(f"\nInterrupted: {_summary(total, count, None)}")
        return 130
    finally:
        env.close()


def _ask(info: dict[str, Any]) -> str | None:
    """The next action, or None at the end of the input."""
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return None
        if text == "q":
            return None
        if text != "?":
            if text:
                return text
            continue
        commands = info.get("admissible_commands")
        say("  " + "\n  ".join(commands) if commands else "The environment does not list its commands.")


def by_policy(pool: EnvPool, policy: Policy, config: RolloutConfig, seed: int, options: dict[str, Any]) -> int:
    """Let a policy play one episode and print its turns.

    Args:
        pool: Environments.
        policy: Who acts.
        config: How.
        seed: Seed of the episode and of the policy's sampling.
        options: Options of ``reset``.

    Returns:
        Exit code 0.

    Raises:
        EnvError: If the episode failed for reasons outside the policy.
    """
    rollout = Rollout(pool, policy, config, options)
    groups = rollout.collect([Task(seed, seed, "play", 0, 0)])
    if not groups:
        reasons = "; ".join(f"{kind}: {message}" for kind, message in rollout.stats.messages.items())
        raise EnvError(f"the episode failed: {reasons}")
    trajectory = groups[0].trajectories[0]
    say(trajectory.messages[0]["content"])
    for turn in trajectory.turns:
        say(f"\n{turn.observation}")
        say("\n".join(f"> {line}" for line in (turn.text or "(nothing)").split("\n")))
        if turn.parse_error:
            say(f"  [no action: {turn.parse_error}]")
        if turn.reward:
            say(f"  [reward {turn.reward:g}]")
    ended = trajectory.status.value if trajectory.status else "unfinished"
    total = _summary(trajectory.episode_return, len(trajectory.turns), trajectory.success)
    say(f"\n{trajectory.final_observation}\n\n{policy.name}, {ended}: {total}")
    return 0


def _earned(reward: float, info: dict[str, Any]) -> str:
    score = f", score {info['score']:g}" if isinstance(info.get("score"), int | float) else ""
    best = f" of {info['max_score']:g}" if score and isinstance(info.get("max_score"), int | float) else ""
    return f"\n  [reward {reward:g}{score}{best}]" if reward else ""


def _summary(total: float, count: int, success: Any) -> str:
    outcome = "" if success is None else ", success" if success else ", no success"
    return f"return {total:g} after {count} step{'s' * (count != 1)}{outcome}"


def say(text: str) -> None:
    """Print without what would move the cursor or what the terminal's encoding cannot hold."""
    encoding = sys.stdout.encoding or "utf-8"
    print(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text).encode(encoding, "replace").decode(encoding))
