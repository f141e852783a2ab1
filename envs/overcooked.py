"""Overcooked as text with macro-actions, after POAD and TWOSOME; `agentgym.envs.overcooked_kitchen` is the world."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
from agentgym.envs.overcooked_kitchen import CHOPPING, LETTERS, TASKS, Kitchen, State
from agentgym.envs.planning import shortest_plan
from agentgym.envs.words import listed
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, unknown
from agentgym.spaces import UnicodeText

DISCOUNT = 0.99
"""Discount of a reward for each primitive step before it in the same macro-action."""

CHOPPED, DELIVERED, WRONG, STEP = 0.2, 1.0, -0.1, -0.001
"""Rewards: a needed food chopped for the first time, the right dish served, anything else served, a primitive step."""

SPLITS = ("train", "dev", "test")
"""What the reset option ``split`` may be. It changes nothing: with so few starts there are none to keep apart."""

_INSTRUCTIONS = (
    "You cook in a small kitchen and are told what you see from where you stand, two steps far to every side. Walking "
    "is part of what you do; every step costs a little. You hold one thing at a time. Food is chopped on a cutting "
    f"board, which takes {CHOPPING} steps, while you stand there with empty hands; only chopped food goes onto the "
    "plate, which you bring to it or it to the plate. Serve exactly the dish that is asked for: anything else is taken "
    "away, and lies raw at its old place again. What you can do has other words when your hands or the boards change."
)


@functools.cache
def _kitchen(task: str) -> Kitchen:
    return Kitchen(task)


@functools.lru_cache(maxsize=4096)
def _plan(task: str, state: State) -> tuple[str, ...]:
    """The macro-actions of a delivery in the fewest primitive steps."""
    kitchen, done = _kitchen(task), State((0, 0), (), ())

    def moves(at: State) -> dict[str, tuple[State, int]]:
        found = {}
        for text, macro in kitchen.macros(at).items():
            steps = list(kitchen.play(at, macro))
            after, event = steps[-1]
            found[text] = (done if event == "delivered" else after), len(steps)
        return found

    return tuple(shortest_plan(state, moves, lambda at: at == done) or ())


def tell(kitchen: Kitchen, state: State) -> str:
    """What the cook sees and holds, as a paragraph whose last sentence the macro-action completes."""
    dish = [kitchen.word(state, food) for food in kitchen.on_plate(state)]
    plate = f"plate with {listed(dish)}" if dish else "plate"
    tables = [
        food
        for food, place in zip(kitchen.foods, state.places, strict=True)
        if place == "table" and kitchen.in_sight(state, LETTERS[food])
    ]
    if not state.has_plate and kitchen.in_sight(state, "P"):
        tables.append(plate)
    told = [f"You see {listed(tables)} on the tables."]
    for board in kitchen.boards:
        food = kitchen.on(state, board)
        holds = f"holds {listed([kitchen.word(state, food)] if food else [])}"
        name = kitchen.names[board].capitalize()
        told.append(f"{name} {holds if kitchen.in_sight(state, board) else 'is out of sight'}.")
    told += [f"You stand at {name}." for letter, name in kitchen.names.items() if kitchen.stands[letter] == state.at]
    held = kitchen.held(state)
    in_hand = [plate] if held == "plate" else [kitchen.word(state, held)] if held else []
    wanted = " and ".join(f"chopped {food}" for food in kitchen.recipe.dish)
    return f"{' '.join(told)} You hold {listed(in_hand)}. To serve the dish of {wanted} you should first"


class OvercookedEnv(gym.Env[str, str]):
    """One cook in a kitchen; observations are text, actions the text of a macro-action of some primitive steps.

    ``terminated`` when the right dish is served, ``truncated`` after ``max_steps`` primitive steps, also in the middle
    of a macro-action. The reward of a macro-action is the sum of those of its primitive steps, each discounted by
    `DISCOUNT` for every step before it. ``info`` holds ``admissible_commands`` (sorted; 5 or 8), ``primitive_steps``
    (since the start), ``score`` (`CHOPPED` for each needed food, `DELIVERED`), ``max_score``, ``success``, ``task``,
    and with ``expert`` the ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        task: str = "tomato-salad",
        max_steps: int = 200,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments.

        Args:
            task: A key of `agentgym.envs.overcooked_kitchen.TASKS`.
            max_steps: Primitive steps until ``truncated``.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.task, self.max_steps, self.expert, self.render_mode = _checked(task), max_steps, expert, render_mode
        self.instructions = _INSTRUCTIONS
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._playing = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Draws the cell where the cook starts.
            options: ``task``, ``expert`` for this episode instead of the constructor's; ``split``, which changes
                nothing.

        Returns:
            What the cook sees, and ``info``.

        Raises:
            ConfigError: A wrong option.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        self._name = _checked(options.pop("task", self.task))
        self._hints = bool(options.pop("expert", self.expert))
        if (split := options.pop("split", "train")) not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        if options:
            raise unknown("reset option", next(iter(options)), ["task", "split", "expert"])
        self._kitchen = _kitchen(self._name)
        floor = self._kitchen.floor
        self._state = self._kitchen.start(floor[int(self.np_random.integers(len(floor)))])
        self._done: set[str] = set()
        self._steps, self._success, self._playing = 0, False, True
        self._text = tell(self._kitchen, self._state)
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do a macro-action; what is none of the admissible ones costs a primitive step and changes nothing.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        macro = self._kitchen.macros(self._state).get(" ".join(action.lower().split()))
        reward, truncated = 0.0, False
        steps = iter([(self._state, "")]) if macro is None else self._kitchen.play(self._state, macro)
        for number, (self._state, event) in enumerate(steps):
            self._steps += 1
            reward += DISCOUNT**number * (STEP + self._worth(event))
            truncated = self._steps >= self.max_steps and not self._success
            if truncated:
                break
        self._text = f"{'You cannot do that now. ' if macro is None else ''}{tell(self._kitchen, self._state)}"
        self._playing = not (self._success or truncated)
        return self._text, reward, self._success, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """End the episode. Safe to call again."""
        self._playing = False

    def _worth(self, event: str) -> float:
        """The reward for what has happened, which is remembered."""
        if event == "delivered":
            self._success = True
            return DELIVERED
        if event in self._kitchen.recipe.dish and event not in self._done:
            self._done.add(event)
            return CHOPPED
        return WRONG if event == "wrong" else 0.0

    def _info(self) -> dict[str, Any]:
        info = {
            "admissible_commands": sorted(self._kitchen.macros(self._state)),
            "primitive_steps": self._steps,
            "score": CHOPPED * len(self._done) + DELIVERED * self._success,
            "max_score": CHOPPED * len(self._kitchen.recipe.dish) + DELIVERED,
            "success": self._success,
            "task": self._name,
        }
        if self._hints:
            info["expert_action"] = _plan(self._name, self._state)[0] if self._playing else None
        return info


def _checked(task: Any) -> str:
    if not isinstance(task, str) or task not in TASKS:
        raise unknown("task", str(task), TASKS)
    return task
