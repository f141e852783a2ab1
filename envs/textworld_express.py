"""TextWorldExpress (Jansen and Côté, 2023): eight fast text games behind Gymnasium, many in one Java process.

The stock wrapper starts a JVM for every environment. Here all environments of a process share one
(started with the first, ended with the last), and a step costs one round trip to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from agentgym.envs.jvm import JavaEngine, Jvm
from agentgym.envs.textworld_express_expert import HOUSES, Expert
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, unknown
from agentgym.spaces import UnicodeText

_COMMON = ("numLocations", "numDistractorItems", "includeDoors", "limitInventorySize")
PARAMS: dict[str, tuple[str, ...]] = {
    "cookingworld": (*_COMMON, "numIngredients"),
    "twc": ("numLocations", "numItemsToPutAway", "includeDoors", "limitInventorySize"),
    "coin": _COMMON,
    "mapreader": (
        "numLocations",
        "maxDistanceApart",
        "maxDistractorItemsPerLocation",
        "includeDoors",
        "limitInventorySize",
    ),
    "arithmetic": (),
    "sorting": (),
    "simonsays": ("gameLength", "numDistractors", "memorization", "verbose"),
    "peckingorder": (),
}
"""What each game lets one set; every value is an integer (0 or 1 for switches)."""

SWITCHES = {"includeDoors", "limitInventorySize", "memorization", "verbose"}
_UNCHECKED = {("mapreader", "numLocations"): (2, 48), ("twc", "numItemsToPutAway"): (1, 4)}
"""Limits that the engine does not check; it checks the other ones itself."""

FOLDS = {"train": range(0, 1000), "dev": range(10000, 11000), "test": range(20000, 21000)}
"""Engine seeds of each split; a reset seed picks ``FOLDS[split][seed % 1000]``."""

_MOVES = "'look around', 'move north', 'open door to east', 'take X', 'inventory'"
_INSTRUCTIONS = {
    "cookingworld": "You are in a text game about cooking. Read the cookbook in the kitchen, gather the "
    "ingredients, cut and cook each exactly as the recipe says, then prepare and eat the meal. "
    f"Commands look like: {_MOVES}, 'open fridge', 'read cookbook', 'slice X', 'dice X', 'chop X' (with the "
    "knife in hand), 'cook X in stove' (fries), 'cook X in oven' (roasts), 'cook X in barbeque' or "
    "'cook X in toaster' (grills), 'prepare meal', 'eat meal'.",
    "twc": "You are in a text game about tidying a house. Pick up the objects that lie about and put each "
    f"where it usually belongs. Commands look like: {_MOVES}, 'open wardrobe', 'put X in wardrobe'.",
    "coin": "You are in a text game. Search the rooms for the coin and take it. "
    f"Commands look like: {_MOVES}, 'take coin'.",
    "mapreader": "You are in a text game about finding a way with a map. Take the coin from the place named in "
    "the task and put it into the box. Commands look like: 'read map', 'look around', 'move north', "
    "'take coin', 'put coin in box', 'task'.",
    "arithmetic": "You are in a text game about arithmetic. Take and read the math problem, then put the "
    "bundle whose number of objects is the answer into the box. Commands look like: 'take math problem', "
    "'read math problem', 'take 6 pineapples', 'put 6 pineapples in box'.",
    "sorting": "You are in a text game about order. Put the bundles of objects into the box one by one, the "
    "smallest quantity first. Commands look like: 'take 4 grapes', 'put 4 grapes in box', 'look around'.",
    "simonsays": "You are in a game of Simon says. Do exactly what Simon says, and nothing else: "
    "give the command between the quotation marks, such as 'touch orange'.",
    "peckingorder": "You are in a text game about following instructions. Read the instructions book, do what "
    "it says, and read it again, until the game is complete. Commands look like: 'read instructions book', "
    "'take orange'.",
}

JAVA_OPTIONS = (
    "-Xmx256m",  # a game is about 0.1 MB
    "-Xmn16m",  # or the heap grows to the limit before it is first collected
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # steps are short: the optimising compiler costs more than it gives
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
)
ENGINE = JavaEngine("TextWorldExpress", "textworld_express", "textworld-express", JAVA_OPTIONS)


def parse_params(game: str, params: str | Mapping[str, int] | None) -> dict[str, int]:
    """Check game parameters, given as a mapping or as ``"numLocations=5, includeDoors=0"``.

    Args:
        game: Name of the game.
        params: The parameters, or None for the engine's defaults.

    Returns:
        The parameters as integers.

    Raises:
        ConfigError: A key that the game does not have, or a value that is not an integer.
    """
    if isinstance(params, str):
        pairs = [part.partition("=") for part in params.split(",") if part.strip()]
        items: list[tuple[str, Any]] = [(key.strip(), value.strip()) for key, _, value in pairs]
    elif params is None or isinstance(params, Mapping):
        items = list((params or {}).items())
    else:
        raise ConfigError(f"game_params of {game} must be settings such as 'numLocations=5', not {params!r}")
    checked = {}
    for key, value in items:
        if key not in PARAMS[game]:
            if not PARAMS[game]:
                raise ConfigError(f"unknown parameter {key!r} of {game}: this game has none")
            error = unknown(f"parameter of {game}", key, PARAMS[game])
            raise ConfigError(f"{error}; allowed: {', '.join(PARAMS[game])}")
        try:
            checked[key] = int(value)
        except (TypeError, ValueError):
            raise ConfigError(f"parameter {key} of {game} must be an integer, not {value!r}") from None
        low, high = (0, 1) if key in SWITCHES else _UNCHECKED.get((game, key), (-math.inf, math.inf))
        if not low <= checked[key] <= high:
            raise ConfigError(f"parameter {key} of {game} must be {low} to {high}, not {value!r}")
    return checked


class TextWorldExpressEnv(gym.Env[str, str]):
    """One of the eight TextWorldExpress games; observations and actions are text.

    The reward is the change of the engine's raw score; ``terminated`` when the game is won or lost,
    ``truncated`` after ``max_steps`` actions. ``info`` holds ``admissible_commands`` (sorted), ``score``,
    ``max_score``, ``success``, ``task``, and with ``expert`` the ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        game: str = "coin",
        game_params: str | Mapping[str, int] | None = None,
        split: str = "train",
        max_steps: int = 50,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments and take a simulator in the shared JVM.

        Args:
            game: A key of ``PARAMS``.
            game_params: Parameters of the game, see ``PARAMS``; the engine's defaults otherwise.
            split: ``train``, ``dev`` or ``test``: 1000 engine seeds each, and other vocabulary or houses.
            max_steps: Actions until ``truncated``.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
            MissingDependency: The package or Java is not installed.
        """
        if game not in PARAMS:
            raise unknown("game", game, PARAMS)
        if split not in FOLDS:
            raise unknown("split", split, FOLDS)
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.game, self.split, self.max_steps, self.expert = game, split, max_steps, expert
        self.game_params = parse_params(game, game_params)
        self.render_mode = render_mode
        self.instructions = _INSTRUCTIONS[game]
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._playing = False
        self._text = ""
        self._planner: Expert | None = None
        self._server: Any = None
        self._jvm: Jvm | None = ENGINE.acquire()
        try:
            self._server = self._call(self._jvm.gateway.jvm.textworldexpress.runtime.PythonInterface)
            self._step_json = self._server.stepJSON
            self._loaded: dict[str, int] | None = None
            self._load(self.game_params)
        except BaseException:
            self.close()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game.

        Args:
            seed: Chooses the game: ``FOLDS[split][seed % 1000]``. Drawn from ``np_random`` if None.
            options: ``split``, ``game_params``, ``expert`` for this episode instead of the constructor's.

        Returns:
            The task and what the agent sees, and ``info``.

        Raises:
            ConfigError: A wrong option.
            EnvError: The engine failed.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        split = options.pop("split", self.split)
        params = parse_params(self.game, options.pop("game_params", self.game_params))
        hint = bool(options.pop("expert", self.expert))
        if options:
            raise unknown("reset option", next(iter(options)), ["split", "game_params", "expert"])
        if not isinstance(split, str) or split not in FOLDS:
            raise unknown("split", str(split), FOLDS)
        games = FOLDS[split]
        number = int(self.np_random.integers(len(games))) if seed is None else seed % len(games)
        self._playing = False
        self._load(params)
        state = self._generate(split, number, hint and self.game not in HOUSES)
        self._task = self._call(self._server.getTaskDescription).strip()
        self._max_score = self._read_max_score()
        self._drop_planner()
        if hint:
            self._planner = Expert(self.game, self._server, self._jvm)  # type: ignore[arg-type]
        self._score, self._steps, self._playing = 0.0, 0, True
        self._text = f"{self._task}\n\n{state['observation'].strip()}"
        return self._text, self._info(state, None)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one command; one that the game does not know costs a step and changes nothing.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            EnvError: The engine failed or its process died.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        command = " ".join(action.split()).encode("utf-8", "replace").decode()
        state = self._decode(self._call(self._step_json, command))
        self._steps += 1
        reward = state["scoreRaw"] - self._score
        self._score = state["scoreRaw"]
        terminated = state["tasksuccess"] or state["taskfailure"]
        truncated = not terminated and self._steps >= self.max_steps
        self._playing = not (terminated or truncated)
        self._text = state["observation"].strip() or "(no answer)"
        return self._text, reward, terminated, truncated, self._info(state, command)

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Give the simulator back; the JVM ends with its last user. Safe to call again."""
        jvm, self._jvm = self._jvm, None
        self._playing = False
        if jvm is not None:
            planner, self._planner = self._planner, None
            jvm.release(*(planner.handles if planner else ()), *([self._server] if self._server else ()))

    def _info(self, state: dict[str, Any], command: str | None) -> dict[str, Any]:
        info = {
            "admissible_commands": sorted({*state["validActions"]} - {""}),
            "score": self._score,
            "max_score": self._max_score,
            "success": state["tasksuccess"],
            "task": self._task,
        }
        if self._planner is not None:
            info["expert_action"] = self._planner.next(state, command)
        return info

    def _drop_planner(self) -> None:
        if self._planner is not None:
            self._planner.close()
            self._planner = None

    def _generate(self, split: str, number: int, gold: bool) -> dict[str, Any]:
        """Make that game of the split, or the next one if the engine cannot lay out its map."""
        games = FOLDS[split]
        for offset in range(50):
            seed = games[(number + offset) % len(games)]
            try:
                return self._decode(self._call(self._server.generateNewGameJSON, seed, split, gold))
            except EnvError as error:
                if "distance apart" not in str(error):
                    raise
        raise ConfigError("mapreader finds no places that far apart: lower maxDistanceApart")

    def _load(self, params: dict[str, int]) -> None:
        if params != self._loaded:
            self._loaded = None
            text = ",".join(f"{key}={value}" for key, value in params.items())
            if message := self._call(self._server.load, self.game, text):
                raise ConfigError(f"{self.game}: {message.strip()}")
            self._loaded = dict(params)

    def _read_max_score(self) -> float:
        game = self._call(self._server.game)
        scorer = self._call(game.scorer)
        value = float(self._call(scorer.maxScore))
        for part in (scorer, game):
            self._call(self._jvm.gateway.detach, part)  # type: ignore[union-attr]
        return value

    def _decode(self, text: str) -> dict[str, Any]:
        try:
            return json.loads(text)
        except ValueError as error:
            raise EnvError(f"TextWorldExpress {self.game} sent no valid JSON: {text[:200]!r}") from error

    def _call(self, method: Any, *args: Any) -> Any:
        if self._jvm is None:
            raise EnvError("this environment is closed")
        try:
            return self._jvm.call(method, *args)
        except EnvError:
            self._playing = False
            raise
