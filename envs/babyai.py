"""BabyAI (Chevalier-Boisvert et al., 2019) as text: minigrid's levels, with the agent's view told in words."""

from __future__ import annotations

import functools
import logging
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, missing, unknown
from agentgym.spaces import UnicodeText

COMMANDS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done")
"""The commands, at the places of minigrid's actions."""

_NUMBERS = {command: number for number, command in enumerate(COMMANDS)}

FIRST_SEED = {"train": 0, "dev": 1_000_000, "test": 2_000_000}
"""Engine seed of each split's first mission; a reset seed picks ``FIRST_SEED[split] + seed % 1_000_000``."""

_SEEDS = 1_000_000
_VIEW = 7
_HERE = (_VIEW // 2, _VIEW - 1)
"""Column and row of the agent in its own view; it looks towards row 0."""

_INSTRUCTIONS = (
    "You are in a grid of rooms and do what the task says. You see what is in front of you, up to 6 steps forward and "
    "3 steps to either side, but not through walls and closed doors; where nothing is named, the floor is free. "
    "Commands: 'turn left', 'turn right', 'go forward' (one step, if nothing is in the way), 'pick up' (the key, "
    "ball or box 1 step forward; you can carry one thing), 'drop' (onto the free floor 1 step forward), 'toggle' "
    "(opens or closes the door 1 step forward; a locked one opens only while you carry the key of its colour; a box "
    "is opened and gone), 'done' (nothing happens). You have gone to a thing when it is 1 step forward."
)

_UNSEEN, _EMPTY, _WALL, _DOOR = 0, 1, 2, 4
_OBJECTS = {5: "key", 6: "ball", 7: "box"}
_COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_DOOR_STATES = ("an open", "a closed", "a locked")
_FACING = ("east", "south", "west", "north")
_OPEN, _LOCKED = 0, 2
_KEY = 5

_REPLANS = 300
"""Subgoals that minigrid's bot may add in one step; some of its plans go on without end."""

_log = logging.getLogger(__name__)


@functools.cache
def levels() -> dict[str, str]:
    """Level name -> minigrid's id, such as ``GoToLocal`` -> ``BabyAI-GoToLocal-v0``.

    Raises:
        MissingDependency: minigrid is not installed.
        ConfigError: minigrid is switched to another task.
    """
    try:
        import minigrid  # noqa: F401
        from minigrid.envs.babyai.core import roomgrid_level, verifier
    except ImportError as error:
        raise missing("minigrid", "babyai") from error
    if verifier.use_done_actions:
        raise ConfigError("BABYAI_DONE_ACTIONS is set, with which minigrid never ends an episode: unset it")
    # minigrid prints every rejected layout; for that module alone, print means the log
    roomgrid_level.print = lambda *words: _log.debug(" ".join(map(str, words)))
    ids = [name for name in gym.registry if name.startswith("BabyAI-")]
    return {name.removeprefix("BabyAI-").rpartition("-v")[0]: name for name in ids}


def _steps(count: int, side: str) -> str:
    return f"{count} step{'s' * (count != 1)} {side}"


def _place(column: int, row: int) -> str:
    """Where a cell of the view is, seen from the agent."""
    forward, right = _HERE[1] - row, column - _HERE[0]
    words = [_steps(forward, "forward")] if forward else []
    if right:
        words.append(_steps(abs(right), "right" if right > 0 else "left"))
    return " and ".join(words)


_PLACES = [_place(column, row) for column in range(_VIEW) for row in range(_VIEW)]
_AGENT = _HERE[0] * _VIEW + _HERE[1]
_FRONT = _AGENT - 1
_ORDER = sorted(
    (k for k in range(_VIEW * _VIEW) if k != _AGENT),
    key=lambda k: (abs(k // _VIEW - _HERE[0]) + _HERE[1] - k % _VIEW, _HERE[1] - k % _VIEW, k),
)
"""The cells of a view, nearest first; number ``7 * column + row``."""

_IS_WALL = bytes(kind == _WALL for kind in range(256))
_IS_THING = bytes(kind > _WALL for kind in range(256))


def _side(column: int) -> str:
    right = column - _HERE[0]
    return "0" if not right else f"{abs(right)} {'right' if right > 0 else 'left'}"


@functools.lru_cache(maxsize=4096)
def _tell_walls(walls: bytes) -> str:
    """The walls of a view (1 where a wall is), as lines across and lines along the way of looking."""
    left = {(k // _VIEW, k % _VIEW) for k, wall in enumerate(walls) if wall}
    lines = []
    for row in reversed(range(_VIEW)):
        column = 0
        while column < _VIEW:
            end = column
            while (end, row) in left:
                end += 1
            if end - column > 1:
                where = _steps(_HERE[1] - row, "forward") if row < _HERE[1] else "beside you"
                lines.append(f"{where} from {_side(column)} to {_side(end - 1)}")
                left -= {(c, row) for c in range(column, end)}
            column = max(end, column + 1)
    for column in range(_VIEW):
        row = _HERE[1]
        while row >= 0:
            end = row
            while (column, end) in left:
                end -= 1
            if row - end > 1:
                where = "straight on" if column == _HERE[0] else _steps(abs(column - _HERE[0]), _side(column)[2:])
                lines.append(f"{where} from {_HERE[1] - row} to {_HERE[1] - end - 1} forward")
            elif row - end == 1:
                lines.append(_place(column, row))
            row = min(end, row - 1)
    return f"Walls: {'; '.join(lines)}." if lines else "You see no walls."


def _name(data: bytes, cell: int) -> str:
    """What is in a cell of the view."""
    kind, colour, state = data[3 * cell : 3 * cell + 3]
    if kind == _DOOR:
        return f"{_DOOR_STATES[state]} {_COLOURS[colour]} door"
    return f"a {_COLOURS[colour]} {_OBJECTS[kind]}"


def tell(image: Any, direction: int) -> str:
    """Minigrid's observation in words.

    The words hold all that the image holds: things, doors and walls say what can be seen past them, and every cell
    that can be seen and is not named is free.

    Args:
        image: Minigrid's view, ``uint8`` of shape ``(7, 7, 3)``: kind, colour and state of a cell.
        direction: 0 to 3 for east, south, west, north.

    Returns:
        Three lines: the agent, the things and doors, the walls.
    """
    data = image.tobytes()
    kinds = data[::3]
    thing = kinds.translate(_IS_THING)
    carried = _name(data, _AGENT) if thing[_AGENT] else "nothing"
    seen = [f"{_name(data, k)} {_PLACES[k]}" for k in _ORDER if thing[k]]
    return (
        f"You face {_FACING[direction]} and carry {carried}.\n"
        f"You see {', '.join(seen) if seen else 'nothing but the rooms'}.\n"
        f"{_tell_walls(kinds.translate(_IS_WALL))}"
    )


def _useful(data: bytes) -> list[str]:
    """The commands that do something, by what is 1 step forward and in the hands, and ``done``."""
    kind, colour, state = data[3 * _FRONT : 3 * _FRONT + 3]
    held, key_colour = data[3 * _AGENT : 3 * _AGENT + 2]
    commands = ["done"]
    if kind == _EMPTY and held != _EMPTY:
        commands.append("drop")
    if kind == _EMPTY or (kind == _DOOR and state == _OPEN):
        commands.append("go forward")
    if kind in _OBJECTS and held == _EMPTY:
        commands.append("pick up")
    if kind == 7 or (kind == _DOOR and (state != _LOCKED or (held == _KEY and key_colour == colour))):
        commands.append("toggle")
    return [*commands, "turn left", "turn right"]


class _Plan(list[Any]):
    """The stack of subgoals of minigrid's bot, which may grow only so far in one step."""

    left = _REPLANS

    def append(self, subgoal: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise RecursionError("the bot finds no end of its plan")
        super().append(subgoal)


class _Expert:
    """Minigrid's bot, told what the agent did; where it fails, a fresh one that has seen what it saw."""

    def __init__(self, engine: Any):
        self.engine = engine
        self.bot = self._fresh()

    def _fresh(self) -> Any:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        bot = BabyAIBot(self.engine)
        bot.stack = _Plan(bot.stack)
        return bot

    def next(self, action: int | None) -> str | None:
        """The next command, or None if the bot finds none.

        Args:
            action: What the agent did last, None at the start.
        """
        try:
            return self._ask(action)
        except Exception:  # assertions and lookups of all kinds: the bot gives up in the middle of its plan
            seen = self.bot.vis_mask
            self.bot = self._fresh()
            self.bot.vis_mask |= seen
        try:
            return self._ask(None)
        except Exception:
            return None

    def _ask(self, action: int | None) -> str:
        self.bot.stack.left = _REPLANS
        return COMMANDS[self.bot.replan(action)]


class BabyAIEnv(gym.Env[str, str]):
    """A level of BabyAI; observations and actions are text.

    The reward is 1 when the mission is accomplished, else 0. ``terminated`` then, and after a mistake that a strict
    level does not forgive; ``truncated`` after ``max_steps`` actions. ``info`` holds ``admissible_commands``
    (sorted), ``score``, ``max_score``, ``success``, ``task``, and with ``expert`` the ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        level: str = "GoToLocal",
        split: str = "train",
        max_steps: int | None = None,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments and make the level.

        Args:
            level: A key of ``levels()``.
            split: ``train``, ``dev`` or ``test``: a million engine seeds each.
            max_steps: Actions until ``truncated``; minigrid's own limit, by the size of maze and mission, if None.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
            MissingDependency: The package is not installed.
        """
        if split not in FIRST_SEED:
            raise unknown("split", split, FIRST_SEED)
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.level, self.split, self.max_steps, self.expert = level, split, max_steps, expert
        self.render_mode = render_mode
        self.instructions = _INSTRUCTIONS
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._loaded = ""
        self._load(level)
        self._playing = False
        self._text = ""
        self._planner: _Expert | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a mission.

        Args:
            seed: Chooses the mission: ``FIRST_SEED[split] + seed % 1_000_000``. Drawn from ``np_random`` if None.
            options: ``level``, ``split``, ``expert`` for this episode instead of the constructor's.

        Returns:
            The mission and what the agent sees, and ``info``.

        Raises:
            ConfigError: A wrong option.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        level = options.pop("level", self.level)
        split = options.pop("split", self.split)
        expert = bool(options.pop("expert", self.expert))
        if options:
            raise unknown("reset option", next(iter(options)), ["level", "split", "expert"])
        if split not in FIRST_SEED:
            raise unknown("split", split, FIRST_SEED)
        number = int(self.np_random.integers(_SEEDS)) if seed is None else seed % _SEEDS
        self._playing = False
        self._load(level)
        self._engine.reset(seed=FIRST_SEED[split] + number)
        self._task = self._engine.mission
        self._planner = _Expert(self._engine) if expert else None
        self._success, self._playing = False, True
        view = self._observe(self._engine.gen_obs())  # some levels change the world after their first observation
        self._plan(None)
        self._text = f"{self._task}\n\n{view}"
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one command; one that is not among ``COMMANDS`` costs a step and changes nothing.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        engine = self._engine
        number = _NUMBERS.get(" ".join(action.lower().split()))
        if number is None:
            engine.step_count += 1
            terminated, truncated = False, engine.step_count >= engine.max_steps
            self._text = f"Unknown command; the commands are: {', '.join(COMMANDS)}.\n{self._view}"
        else:
            observation, reward, terminated, truncated, _ = engine.step(number)
            self._success = terminated and reward > 0
            truncated = truncated and not terminated
            self._text = self._observe(observation)
        self._playing = not (terminated or truncated)
        if number is not None or not self._playing:
            self._plan(number)
        return self._text, float(self._success), terminated, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Forget the mission. Safe to call again."""
        self._playing, self._planner = False, None

    def _load(self, level: str) -> None:
        if level != self._loaded:
            if level not in levels():
                raise unknown("level", str(level), levels())
            limit = {} if self.max_steps is None else {"max_steps": self.max_steps}
            self._engine: Any = gym.make(levels()[level], disable_env_checker=True, **limit).unwrapped
            self._loaded = level

    def _observe(self, observation: dict[str, Any]) -> str:
        image = observation["image"]
        self._view = tell(image, observation["direction"])
        self._commands = _useful(image.tobytes())
        return self._view

    def _plan(self, action: int | None) -> None:
        self._hint = self._planner.next(action) if self._planner and self._playing else None

    def _info(self) -> dict[str, Any]:
        info = {
            "admissible_commands": list(self._commands),
            "score": float(self._success),
            "max_score": 1.0,
            "success": self._success,
            "task": self._task,
        }
        if self._planner is not None:
            info["expert_action"] = self._hint
        return info
