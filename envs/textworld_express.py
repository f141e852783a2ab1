"""TextWorldExpress (Jansen and Côté, 2023): eight fast text games behind Gymnasium, many in one Java process.

The stock wrapper starts a JVM for every environment. Here all environments of a process share one
(started with the first, ended with the last), and a step costs one round trip to it.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, MissingDependency, missing, unknown
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

_HOUSES = ("coin", "mapreader", "twc", "cookingworld")
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
ANSWER_S = 60.0
"""A call that Java does not answer for so long counts as failed."""


class _Jvm:
    """The Java process of this Python process: started on first use, counted, ended with its last user."""

    current: ClassVar[_Jvm | None] = None
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        try:
            from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
            from textworld_express.constants import BASEPATH, JAR_PATH
        except ImportError as error:
            raise missing("textworld_express", "textworld-express") from error
        try:
            port, token, self.process = launch_gateway(
                classpath=JAR_PATH,
                cwd=BASEPATH,  # the engine reads its data files from the working directory
                javaopts=list(JAVA_OPTIONS),
                die_on_exit=True,  # the JVM ends when its stdin closes, so also when we are killed
                create_new_process_group=True,  # Ctrl-C is for us, not for the JVM
                enable_auth=True,
                return_proc=True,
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise MissingDependency(
                "java is not installed (TextWorldExpress runs in it): apt-get install default-jre-headless"
            ) from error
        except ValueError as error:
            raise EnvError(f"java does not start with {' '.join(JAVA_OPTIONS)}") from error
        # Java objects are let go by hand: py4j's own finalizers would also run in forked children.
        self.gateway = JavaGateway(
            gateway_parameters=GatewayParameters(
                port=port, auth_token=token, read_timeout=ANSWER_S, enable_memory_management=False
            )
        )
        self.pid = os.getpid()
        self.users = 0

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    @classmethod
    def acquire(cls) -> _Jvm:
        """The running JVM, or a new one if there is none or it died."""
        with cls.lock:
            if cls.current is None or cls.current.dead:
                cls.current = cls()
            cls.current.users += 1
            return cls.current

    def release(self) -> None:
        """Give it back; the last one to do so ends it."""
        if self.pid == os.getpid():
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.stop()

    def stop(self) -> None:
        """End the process at once (it holds nothing worth saving); the next ``acquire`` starts another."""
        if _Jvm.current is self:
            _Jvm.current = None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.gateway.close(keep_callback_server=True)

    @classmethod
    def stop_current(cls) -> None:
        """At interpreter exit."""
        if cls.current is not None:
            cls.current.stop()

    @classmethod
    def forget(cls) -> None:
        """In a forked child: the JVM is the parent's, and our copy of its stdin must not keep it alive."""
        if cls.current is not None:
            cls.current.process.stdin.close()
        cls.current, cls.lock = None, threading.Lock()


atexit.register(_Jvm.stop_current)
os.register_at_fork(after_in_child=_Jvm.forget)


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


_SIDES = ("North", "South", "East", "West")
_FLAGS = {
    "chop": "isChopped",
    "slice": "isSliced",
    "dice": "isDiced",
    "fry": "isFried",
    "roast": "isRoasted",
    "grill": "isGrilled",
}
_DEVICES = {"fry": ("stove",), "roast": ("oven",), "grill": ("barbeque", "toaster")}

_Place = tuple[str | None, tuple[str, ...], dict[str, Any]]
"""Where an object is: its room (None: in the hands), the containers round it, and its own state."""


class _Expert:
    """Reads the whole state of a game and names the next command of a way to win from there.

    In the four house games it walks the shortest way to the nearest thing that is left to do, so it needs no
    memory of how the agent came to be where it is. In the others it follows the order that the engine's own
    gold path gives. It reads the cookbook, the map, the math problem and the instructions before it uses what
    they say, though it knows it, so that its actions can be imitated.
    """

    def __init__(self, game: str, server: Any, call: Callable[..., Any], jvm: Any, detach: Callable[[Any], Any]):
        self.game, self.call = game, call
        self.handles: list[Any] = []
        self.read = False
        self.rooms: dict[str, dict[str, Any]] = {}
        self.held: dict[str, dict[str, Any]] = {}
        self.gold: list[str] = []
        if game not in _HOUSES:
            steps = self._keep(server.getGoldActionSequence)
            self.gold = call(jvm.String.join, "\n", steps).split("\n")
        else:
            engine = self._keep(server.game)
            self.hands = self._keep(engine.agentInventory)
            for handle in self.call(list, self._keep(engine.locations)):
                self.handles.append(handle)
                room = json.loads(call(handle.toJSON))
                self.rooms[room["name"]] = room
            if game == "twc":
                self.homes = self._read_homes(engine, jvm)
            elif game == "cookingworld":
                self.recipe = _parse_recipe(self.find("cookbook")[2]["readText"])  # type: ignore[index]
        self._detach = detach

    def _keep(self, method: Any, *args: Any) -> Any:
        self.handles.append(self.call(method, *args))
        return self.handles[-1]

    def _read_homes(self, engine: Any, jvm: Any) -> dict[str, list[str]]:
        """For each thing to put away, the containers it belongs in."""
        things = self._keep(self._keep(engine.scorer).taskObjects)
        homes = {}
        for index in range(self.call(things.length)):
            thing = self._keep(things.apply, index)
            homes[self.call(thing.name)] = self.call(list, self._keep(thing.canonicalLocations))
        return homes

    def close(self) -> None:
        """Let go of the Java objects."""
        for handle in self.handles:
            self._detach(handle)
        self.handles = []

    def next(self, state: dict[str, Any], command: str | None) -> str | None:
        """The next command, or None if the game can no longer be won (or is over).

        Args:
            state: What the engine sent last.
            command: What the agent did last, None at the start.
        """
        if state["tasksuccess"] or state["taskfailure"]:
            return None
        self.allowed = set(state["validActions"])
        command = (command or "").lower()
        if command in ("read cookbook", "examine cookbook", "read map", "read instructions book"):
            self.read = True
        if self.game in _HOUSES:
            self.look = state["look"]
            self.here = self.look.removeprefix("You are in the ").split(".", 1)[0]
            self._follow(command)
            room_left = re.search(r"maximum capacity is (\d+)", state["inventory"])
            self.capacity = int(room_left.group(1)) if room_left else 1000
        elif command.startswith("take "):
            self.read = False
        return getattr(self, f"_{self.game}")(state)

    def _follow(self, command: str) -> None:
        """Keep the rooms true: what has come into the hands left its room, what was put down is there now."""
        before, self.held = self.held, json.loads(self.call(self.hands.toJSON))["contents"]
        for name in self.held.keys() - before.keys():
            for tree in self.rooms.values():
                _remove(tree, name)
        for name in before.keys() - self.held.keys():
            if command.startswith(f"put {name.lower()} in "):
                for room, _, node in self.find_all(command.rpartition(" in ")[2]):
                    if room == self.here:
                        node["contents"][name] = before[name]

    def _simonsays(self, state: dict[str, Any]) -> str | None:
        return self.gold[round(state["scoreRaw"])]

    def _peckingorder(self, state: dict[str, Any]) -> str | None:
        orders = [step for step in self.gold if step.startswith("take ")]
        return orders[round(state["scoreRaw"])] if self.read else "read instructions book"

    def _sorting(self, state: dict[str, Any]) -> str | None:
        put = [step for step in self.gold if step.startswith("put ")][round(state["scoreRaw"])]
        return put if put in self.allowed else put.replace("put ", "take ", 1).removesuffix(" in box")

    def _arithmetic(self, state: dict[str, Any]) -> str | None:
        steps = self.gold[-2:] if state["scoreRaw"] else ["take math problem", "read math problem"]
        return next((step for step in reversed(steps) if step in self.allowed), None)

    def _coin(self, state: dict[str, Any]) -> str | None:
        return None if len(self.held) >= self.capacity else self._fetch("coin")

    def _mapreader(self, state: dict[str, Any]) -> str | None:
        if not self.read and "map" in self.held:
            return "read map"
        if "coin" in self.held:
            return self._do(self.find("box"), "put coin in box")
        return self._put_away({"coin"}, "box") or self._fetch("coin")

    def _twc(self, state: dict[str, Any]) -> str | None:
        options = []
        for thing, homes in self.homes.items():
            place = self.find(thing)
            if place is None or (place[1] and place[1][-1] in homes):
                continue
            if place[0] is not None:
                if len(self.held) < self.capacity:
                    options.append((place, f"take {thing}"))
                continue
            for home in homes:
                options += [(spot, f"put {thing} in {home}") for spot in self.find_all(home)]
        return self._nearest(options)

    def _cookingworld(self, state: dict[str, Any]) -> str | None:
        if not self.read:
            return self._do(self.find("cookbook"), "read cookbook")
        if "meal" in self.held:
            return "eat meal"
        places = {name: self.find(name) for name in self.recipe}
        if None in places.values():
            return None
        left = {
            name: [verb for verb in verbs if not places[name][2][_FLAGS[verb]]]  # type: ignore[index]
            for name, verbs in self.recipe.items()
        }
        uncut = [name for name, verbs in left.items() if verbs and verbs[0] not in _DEVICES]
        tight = bool(uncut) and len(self.recipe) + 1 > self.capacity
        wanted = {*(uncut if tight else self.recipe), *(["knife"] if uncut else [])}
        options = []
        for name in sorted(wanted - self.held.keys()):
            if (place := self.find(name)) is not None:
                options.append((place, f"take {name}"))
        if options and (away := self._put_away(wanted, "counter")):
            return away
        for name, verbs in left.items():
            if name not in self.held or not verbs:
                continue
            if verbs[0] in _DEVICES:
                for device in _DEVICES[verbs[0]]:
                    options += [(spot, f"cook {name} in {device}") for spot in self.find_all(device)]
            elif "knife" in self.held:
                options.append(((None, (), {}), f"{verbs[0]} {name}"))
        return self._nearest(options) or self._go("kitchen") or "prepare meal"

    def _put_away(self, keep: set[str], where: str) -> str | None:
        """If the hands are full, the way to put down the first thing that is not to be kept.

        Args:
            keep: Things to hold on to.
            where: Something that can take it in, if nothing in this room can.
        """
        if len(self.held) < self.capacity:
            return None
        for thing in self.held:
            if thing not in keep:
                down = sorted(c for c in self.allowed if c.startswith(f"put {thing} in "))
                return down[0] if down else self._do(self.find(where), f"put {thing} in {where}")
        return None

    def find_all(self, name: str) -> list[_Place]:
        """Every place of that name: in the hands first, then room by room."""

        def walk(room: str | None, inside: tuple[str, ...], contents: dict[str, Any]) -> Iterator[_Place]:
            for key, node in contents.items():
                if key.lower() == name.lower():
                    yield room, inside, node
                yield from walk(room, (*inside, key), node["contents"])

        found = list(walk(None, (), self.held))
        for room, tree in self.rooms.items():
            found += walk(room, (), tree["contents"])
        return found

    def find(self, name: str) -> _Place | None:
        """The first place of ``find_all``."""
        return next(iter(self.find_all(name)), None)

    def _fetch(self, name: str) -> str | None:
        return self._do(self.find(name), f"take {name}")

    def _nearest(self, options: list[tuple[_Place, str]]) -> str | None:
        if not options:
            return None
        distance, _ = self._search()
        return self._do(*min(options, key=lambda option: distance.get(option[0][0] or self.here, 1000)))

    def _do(self, place: _Place | None, command: str) -> str | None:
        """Go to the room, open what is shut, then the command."""
        if place is None:
            return None
        room, inside, _ = place
        if room is not None and room != self.here:
            return self._go(room)
        target = command.rpartition(" in ")[2]
        for container in (*inside, target):
            if f"open {container}" in self.allowed:
                return f"open {container}"
        return command

    def _go(self, room: str | None) -> str | None:
        """One move towards a room, or the opening of the door in the way; None if there or unreachable."""
        _, first = self._search()
        side = first.get(room or self.here)
        if side is None:
            return None
        closed = f"To the {side} you see a closed " in self.look
        return f"{'open door to' if closed else 'move'} {side.lower()}"

    def _search(self) -> tuple[dict[str, int], dict[str, str]]:
        """Breadth-first from here: the distance of each room, and the side on which the way begins."""
        distance, queue = {self.here: 0}, deque([self.here])
        first: dict[str, str] = {}
        while queue:
            room = queue.popleft()
            for side in _SIDES:
                other = self.rooms[room][f"location{side}"]
                if other and other not in distance:
                    distance[other] = distance[room] + 1
                    first[other] = first.get(room, side)
                    queue.append(other)
        return distance, first


def _remove(tree: dict[str, Any], name: str) -> None:
    """Take the object out of whatever in the tree holds it."""
    tree["contents"].pop(name, None)
    for node in tree["contents"].values():
        _remove(node, name)


def _parse_recipe(text: str) -> dict[str, list[str]]:
    """Ingredient -> what is to be done to it, cutting before cooking."""
    ingredients, _, directions = text.partition("Directions:")
    recipe: dict[str, list[str]] = {
        line.strip(): [] for line in ingredients.partition("Ingredients:")[2].splitlines() if line.strip()
    }
    for verb, name in re.findall(r"(\w+) the (.+)", directions):
        recipe[name.strip()].append(verb)
    return {name: sorted(verbs, key=lambda verb: verb in _DEVICES) for name, verbs in recipe.items()}


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
        self._planner: _Expert | None = None
        self._jvm: _Jvm | None = _Jvm.acquire()
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
        state = self._generate(split, number, hint and self.game not in _HOUSES)
        self._task = self._call(self._server.getTaskDescription).strip()
        self._max_score = self._read_max_score()
        self._drop_planner()
        if hint:
            gateway = self._jvm.gateway  # type: ignore[union-attr]
            self._planner = _Expert(self.game, self._server, self._call, gateway.jvm, gateway.detach)
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
            if jvm.pid == os.getpid() and jvm.users > 1 and not jvm.dead:
                self._drop_planner()
                jvm.gateway.detach(self._server)
            jvm.release()

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
        """Call Java; whatever goes wrong there is an environment error."""
        if self._jvm is None:
            raise EnvError("this environment is closed")
        if self._jvm.pid != os.getpid():
            raise EnvError("this environment was made before a fork: make it in the process that uses it")
        try:
            return method(*args)
        except Exception as error:
            self._playing = False
            if type(error).__name__ == "Py4JJavaError":  # the Java code failed, the process is well
                summary = " ".join(str(error).splitlines()[:2])
                raise EnvError(f"TextWorldExpress {self.game}: {summary}") from error
            with self._jvm.lock:
                self._jvm.stop()
            raise EnvError(f"TextWorldExpress {self.game}: the Java process died or hung") from error
