"""Experts for the games of TextWorldExpress: they read the engine's state and plan from wherever the agent is."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from agentgym.envs.jvm import Jvm

HOUSES = ("coin", "mapreader", "twc", "cookingworld")
"""The games with rooms to walk through."""

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


class Expert:
    """Reads the whole state of a game and names the next command of a way to win from there.

    In the four house games it walks the shortest way to the nearest thing that is left to do, so it needs no
    memory of how the agent came to be where it is. In the others it follows the order that the engine's own
    gold path gives. It reads the cookbook, the map, the math problem and the instructions before it uses what
    they say, though it knows it, so that its actions can be imitated.
    """

    def __init__(self, game: str, server: Any, jvm: Jvm):
        """Read the world of a game that has just begun.

        Args:
            game: Name of the game.
            server: The simulator.
            jvm: The process it is in.

        Raises:
            EnvError: The engine failed.
        """
        self.game, self.jvm, self.call = game, jvm, jvm.call
        self.handles: list[Any] = []
        self.read = False
        self.rooms: dict[str, dict[str, Any]] = {}
        self.held: dict[str, dict[str, Any]] = {}
        self.gold: list[str] = []
        if game not in HOUSES:
            self.gold = jvm.join(self.call(server.getGoldActionSequence))
        else:
            engine = self._keep(server.game)
            self.hands = self._keep(engine.agentInventory)
            for handle in self.call(list, self._keep(engine.locations)):
                self.handles.append(handle)
                room = json.loads(self.call(handle.toJSON))
                self.rooms[room["name"]] = room
            if game == "twc":
                self.homes = self._read_homes(engine)
            elif game == "cookingworld":
                self.recipe = _parse_recipe(self.find("cookbook")[2]["readText"])  # type: ignore[index]

    def _keep(self, method: Any, *args: Any) -> Any:
        self.handles.append(self.call(method, *args))
        return self.handles[-1]

    def _read_homes(self, engine: Any) -> dict[str, list[str]]:
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
            self.jvm.gateway.detach(handle)
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
        if self.game in HOUSES:
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
