"""Replay: play a stored episode again in a real environment and see whether it is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym

from agentgym.pictures import Sight, observed, seen
from agentgym.types import Status, Trajectory


@dataclass(frozen=True)
class Mismatch:
    """Something that a replayed environment did otherwise than the stored episode.

    Attributes:
        turn: Index of the turn; the number of turns for the final observation.
        what: ``observation``, ``reward``, or ``end`` (the episode ended earlier or later than stored).
        stored: What the trajectory says.
        replayed: What the environment says now.
    """

    turn: int
    what: Literal["observation", "reward", "end"]
    stored: str | float
    replayed: str | float


def replay(
    trajectory: Trajectory,
    env: gym.Env[Any, Any],
    options: dict[str, Any] | None = None,
    show: Callable[[str, Sequence[str]], str] | None = None,
) -> list[Mismatch]:
    """Play the stored actions in a real environment and compare what it says and shows, character by character.

    Images are compared pixel by pixel, through the hash in their marker.

    A turn whose action is None was a parse error: it does not step the environment, its reward is not compared, and
    neither is the observation after it, which is the complaint about the parse error. The final observation is
    compared unless the episode failed or ended with a parse error.

    Args:
        trajectory: The stored episode; its ``env_seed`` resets the environment.
        env: An environment of the same id and arguments. The caller closes it.
        options: The ``reset`` options of the stored episode.
        show: How the policy was shown an observation and the admissible commands (``show`` of an action codec);
            unchanged by default.

    Returns:
        The mismatches in order of turns; empty if the episode is reproduced.
    """
    observation, info = env.reset(seed=trajectory.env_seed, options=options)
    found: list[Mismatch] = []
    ended = ""
    comparable = True
    for index, turn in enumerate(trajectory.turns):
        if ended:
            return [*found, Mismatch(index, "end", "goes on", ended)]
        shown = _shown(observation, info, show)
        if comparable and turn.observation != shown:
            found.append(Mismatch(index, "observation", turn.observation, shown))
        comparable = turn.action is not None
        if turn.action is None:
            continue
        observation, reward, terminated, truncated, info = env.step(turn.action)
        if float(reward) != turn.reward:
            found.append(Mismatch(index, "reward", turn.reward, float(reward)))
        ended = "terminated" if terminated else "truncated" if truncated else ""
    status, last = trajectory.status, len(trajectory.turns)
    if status is None or status.failed:
        return found
    if comparable and trajectory.final_observation != (final := seen(observed(observation))):
        found.append(Mismatch(last, "observation", trajectory.final_observation, final))
    if status is Status.DONE and not ended:
        found.append(Mismatch(last, "end", "done", "goes on"))
    return found


def _shown(observation: Any, info: dict[str, Any], show: Callable[[str, Sequence[str]], str] | None) -> str:
    """An observation as it was shown; an image is named by its content."""
    found = observed(observation)
    marker, text = (found.ref.marker, found.text) if isinstance(found, Sight) else ("", found)
    return marker + (show(text, info.get("admissible_commands") or []) if show is not None else text)
