"""VirtualHome's two household tasks of TWOSOME and POAD as text; `agentgym.envs.virtualhome_tasks` is the world."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
from agentgym.envs.planning import shortest_plan
from agentgym.envs.virtualhome_tasks import ROOMS, VARIANTS, Entertainment, Food
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, unknown
from agentgym.spaces import UnicodeText

_FOOD = (
    "You do a task in a house and are told after each step how things are. Every room can be reached from every room. "
    "You grab a thing and open or close an appliance when you are near it; you put a thing into an appliance when you "
    "hold it, are near the appliance, and it is open. Steps: 'walk to the' room, thing or appliance; 'grab the' thing; "
    "'put the' thing 'in the' appliance; 'open the' appliance; 'close the' appliance."
)
_ENTERTAINMENT = (
    "You do a task in a house and are told after each step how things are. Every room can be reached from every room. "
    "You have two hands; turning the TV on or off takes a free one. Chips and milk are in the kitchen at first; coffee "
    "table, TV and sofa are in the living room. Steps: 'walk to the' room, chips, milk, coffee table, TV or sofa; and "
    "near the thing: 'grab the chips', 'grab the milk', 'put the chips on the coffee table', 'put the milk on the "
    "coffee table', 'turn on the TV', 'turn off the TV', 'sit on the sofa', 'stand up from the sofa'."
)


SPLITS = ("train", "dev", "test")
"""What the reset option ``split`` may be. It changes nothing: with so few starts there are none to keep apart."""


@functools.lru_cache(maxsize=4096)
def _plan(task: Food | Entertainment, state: Any) -> tuple[str, ...]:
    """The fewest actions from a state to success."""

    def moves(at: Any) -> dict[str, tuple[Any, int]]:
        return {action: (after, 1) for action, after in sorted(task.moves(at).items())}

    return tuple(shortest_plan(state, moves, task.solved) or ())


@functools.cache
def _food(variant: str) -> Food:
    return Food(variant)


_entertainment = Entertainment()


class _VirtualHomeEnv(gym.Env[str, str]):
    """What the two tasks share: everything but the automaton."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012
    instructions: str
    _task: Food | Entertainment

    def __init__(self, start: str | None, max_steps: int, expert: bool, render_mode: str | None):
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.start = _checked("start", start, ROOMS)
        self.max_steps, self.expert, self.render_mode = max_steps, expert, render_mode
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._playing = False
        self._text = ""

    def _begin(self, options: dict[str, Any], known: list[str]) -> None:
        """Read the options of ``reset`` that are left, and draw the first room."""
        start = _checked("start", options.pop("start", self.start), ROOMS)
        self._hints = bool(options.pop("expert", self.expert))
        _checked("split", options.pop("split", None), SPLITS)
        if options:
            raise unknown("reset option", next(iter(options)), known)
        drawn = ROOMS[int(self.np_random.integers(len(ROOMS)))]
        self._state: Any = self._task.start(start or drawn)
        self._steps, self._playing = 0, True
        self._text = self._task.tell(self._state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one action; one that is not admissible costs a step and changes nothing.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        said = " ".join(action.lower().split())
        after = next((state for name, state in self._task.moves(self._state).items() if name.lower() == said), None)
        self._state = self._state if after is None else after
        self._steps += 1
        self._text = f"{'You cannot do that now. ' if after is None else ''}{self._task.tell(self._state)}"
        terminated = self._task.solved(self._state)
        truncated = not terminated and self._steps >= self.max_steps
        self._playing = not (terminated or truncated)
        return self._text, float(terminated), terminated, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """End the episode. Safe to call again."""
        self._playing = False

    def _info(self) -> dict[str, Any]:
        success = self._task.solved(self._state)
        info = {
            "admissible_commands": sorted(self._task.moves(self._state)),
            "score": float(success),
            "max_score": 1.0,
            "success": success,
            "task": self._task.goal,
        }
        if self._hints:
            info["expert_action"] = _plan(self._task, self._state)[0] if self._playing else None
        return info


def _checked(kind: str, name: str | None, choices: Any) -> str | None:
    """The name, if it is None or one of the choices."""
    if name is not None and (not isinstance(name, str) or name not in choices):
        raise unknown(kind, str(name), choices)
    return name


class VirtualHomeFoodEnv(_VirtualHomeEnv):
    """Put a thing into an appliance and close it; observations and actions are text.

    The reward is 1 at success, which ends the episode, else 0; ``truncated`` after ``max_steps`` actions. ``info``
    holds ``admissible_commands`` (sorted), ``score``, ``max_score``, ``success``, ``task``, and with ``expert`` the
    ``expert_action``.
    """

    def __init__(
        self,
        variant: str | None = "pancake",
        start: str | None = None,
        max_steps: int = 50,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments.

        Args:
            variant: The nouns, a key of `agentgym.envs.virtualhome_tasks.VARIANTS`; drawn with the seed if None.
            start: The room in which the agent starts, one of `ROOMS`; drawn with the seed if None.
            max_steps: Actions until ``truncated``.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
        """
        super().__init__(start, max_steps, expert, render_mode)
        self.variant = _checked("variant", variant, VARIANTS)
        self.instructions = _FOOD

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Draws what the arguments leave open.
            options: ``variant``, ``start``, ``expert`` for this episode instead of the constructor's; ``split``, which
                changes nothing.

        Returns:
            The first observation, and ``info``.

        Raises:
            ConfigError: A wrong option.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        variant = _checked("variant", options.pop("variant", self.variant), VARIANTS)
        drawn = list(VARIANTS)[int(self.np_random.integers(len(VARIANTS)))]
        self._task = _food(variant or drawn)
        self._begin(options, ["variant", "start", "split", "expert"])
        return self._text, self._info()


class VirtualHomeEntertainmentEnv(_VirtualHomeEnv):
    """Sit on the sofa with chips and milk while the TV is on; observations and actions are text.

    The reward is 1 at success, which ends the episode, else 0; ``truncated`` after ``max_steps`` actions. ``info``
    holds ``admissible_commands`` (sorted), ``score``, ``max_score``, ``success``, ``task``, and with ``expert`` the
    ``expert_action``.
    """

    def __init__(
        self, start: str | None = None, max_steps: int = 50, expert: bool = False, render_mode: str | None = None
    ):
        """Check the arguments.

        Args:
            start: The room in which the agent starts, one of `ROOMS`; drawn with the seed if None.
            max_steps: Actions until ``truncated``.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
        """
        super().__init__(start, max_steps, expert, render_mode)
        self._task = _entertainment
        self.instructions = _ENTERTAINMENT

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Draws the room in which the agent starts, if it is left open.
            options: ``start``, ``expert`` for this episode instead of the constructor's; ``split``, which changes
                nothing.

        Returns:
            The first observation, and ``info``.

        Raises:
            ConfigError: A wrong option.
        """
        super().reset(seed=seed)
        self._begin(dict(options or {}), ["start", "split", "expert"])
        return self._text, self._info()
