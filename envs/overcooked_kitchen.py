"""The kitchen of text Overcooked: a grid, one cook, and macro-actions made of primitive steps.

A macro-action walks along a shortest path and then does one thing, or chops. Its words depend on what the cook holds
and sees, and are all the cook is told of it; nothing that is out of sight changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

Cell = tuple[int, int]
"""Column and row."""

MAP = (
    "##T#L##",
    "#.....#",
    "1.....O",
    "#.....#",
    "2.....D",
    "#.....#",
    "###P###",
)
"""``T``, ``L``, ``O``: the tables where tomato, lettuce, onion lie at the start; ``P``: the plate's; ``1``, ``2``:
cutting boards; ``D``: delivery; ``#``: empty tables; ``.``: floor. What a task does not have is an empty table."""

VIEW = 2
"""What is at most so many columns and rows away from the cook is in sight."""

CHOPPING = 3
"""Primitive steps that chopping takes."""

LETTERS = {"tomato": "T", "lettuce": "L", "onion": "O"}
"""Food -> the letter of its table."""


class Recipe(NamedTuple):
    """A task.

    Attributes:
        dish: The foods that belong on the plate, chopped.
        foods: All foods in the kitchen.
        boards: How many cutting boards there are.
    """

    dish: tuple[str, ...]
    foods: tuple[str, ...]
    boards: int


TASKS = {
    "tomato-salad": Recipe(("tomato",), ("tomato",), 1),
    "tomato-lettuce-salad": Recipe(("tomato", "lettuce"), ("tomato", "lettuce", "onion"), 2),
}


class State(NamedTuple):
    """State of the kitchen.

    Attributes:
        at: Where the cook stands.
        places: Where each food is: ``table`` (its own), ``hand``, ``plate``, or the letter of a board.
        chopped: Whether each food is chopped.
        has_plate: Whether the cook holds the plate; otherwise it stands on its table.
    """

    at: Cell
    places: tuple[str, ...]
    chopped: tuple[bool, ...]
    has_plate: bool = False


class Macro(NamedTuple):
    """A macro-action in a state.

    Attributes:
        stand: The cell to walk to.
        steps: What each primitive step after that leads to, and what has happened with it: nothing (``""``),
            ``delivered``, ``wrong``, or the name of the food that is now chopped.
    """

    stand: Cell
    steps: tuple[tuple[State, str], ...] = ()


class Kitchen:
    """The world of a task, a key of `TASKS`."""

    def __init__(self, task: str):
        """Lay out the map."""
        self.recipe = TASKS[task]
        self.foods = self.recipe.foods
        cells = {letter: (x, y) for y, row in enumerate(MAP) for x, letter in enumerate(row)}
        self.floor = [(x, y) for y, row in enumerate(MAP) for x, letter in enumerate(row) if letter == "."]
        self.boards = ("1", "2")[: self.recipe.boards]
        used = (*(LETTERS[food] for food in self.foods), *self.boards, "P", "D")
        self.cells = {letter: cells[letter] for letter in used}
        self.stands = {letter: next(c for c in self.floor if _apart(c, cells[letter]) == 1) for letter in used}
        self.names = {"D": "the delivery counter", "1": "the cutting board"}
        if len(self.boards) == 2:
            self.names |= {"1": "the first cutting board", "2": "the second cutting board"}

    def start(self, at: Cell) -> State:
        """The first state of an episode in which the cook starts at a cell of the floor."""
        return State(at, ("table",) * len(self.foods), (False,) * len(self.foods))

    def held(self, state: State) -> str:
        """The food in the hand, ``plate``, or nothing (``""``)."""
        if state.has_plate:
            return "plate"
        return self.foods[state.places.index("hand")] if "hand" in state.places else ""

    def on(self, state: State, board: str) -> str:
        """The food on a board, or nothing (``""``)."""
        return self.foods[state.places.index(board)] if board in state.places else ""

    def on_plate(self, state: State) -> list[str]:
        """The foods on the plate."""
        return [food for food, place in zip(self.foods, state.places, strict=True) if place == "plate"]

    def in_sight(self, state: State, letter: str) -> bool:
        """Whether the cook sees what is at a letter of the map."""
        return max(abs(a - b) for a, b in zip(state.at, self.cells[letter], strict=True)) <= VIEW

    def word(self, state: State, food: str) -> str:
        """``tomato`` or ``chopped tomato``."""
        return f"chopped {food}" if state.chopped[self.foods.index(food)] else food

    def macros(self, state: State) -> dict[str, Macro]:
        """The macro-actions: one for each food, the plate, each board, serving, chopping."""
        found = dict(self._take(state, food) for food in self.foods)
        found |= dict([self._plate(state)])
        found |= dict(self._board(state, board) for board in self.boards)
        return found | dict([self._serve(state), self._chop(state)])

    def play(self, state: State, macro: Macro) -> Iterator[tuple[State, str]]:
        """The primitive steps of a macro-action, one at least: the state after each and what has happened with it."""
        path = _path(state.at, macro.stand)
        yield from ((state._replace(at=cell), "") for cell in path)
        yield from macro.steps
        if not path and not macro.steps:
            yield state, ""

    def _moved(self, state: State, food: str, place: str, at: Cell) -> State:
        number = self.foods.index(food)
        return state._replace(at=at, places=(*state.places[:number], place, *state.places[number + 1 :]))

    def _take(self, state: State, food: str) -> tuple[str, Macro]:
        place = state.places[self.foods.index(food)]
        text = f"pick up the {food}"
        if self.held(state) or place == "plate":
            return text, Macro(state.at)
        stand = self.stands[LETTERS[food] if place == "table" else place]
        return text, Macro(stand, ((self._moved(state, food, "hand", stand), ""),))

    def _plate(self, state: State) -> tuple[str, Macro]:
        held, stand = self.held(state), self.stands["P"]
        if held == "plate":
            return "put the plate back", Macro(stand, ((state._replace(at=stand, has_plate=False), ""),))
        if not held:
            return "take the plate", Macro(stand, ((state._replace(at=stand, has_plate=True), ""),))
        if state.chopped[self.foods.index(held)]:
            after = self._moved(state, held, "plate", stand)
            return f"put the {held} on the plate", Macro(stand, ((after, ""),))
        return "take the plate", Macro(state.at)

    def _board(self, state: State, board: str) -> tuple[str, Macro]:
        held, lies, stand, name = self.held(state), self.on(state, board), self.stands[board], self.names[board]
        seen = lies if self.in_sight(state, board) else ""
        if held in self.foods and not seen:
            after = self._moved(state, held, board, stand)
            return f"put the {held} on {name}", Macro(stand, () if lies else ((after, ""),))
        if held == "plate" and seen and state.chopped[self.foods.index(seen)]:
            after = self._moved(state, seen, "plate", stand)
            return f"put the {seen} on the plate", Macro(stand, ((after, ""),))
        return f"walk to {name}", Macro(stand)

    def _serve(self, state: State) -> tuple[str, Macro]:
        held, dish, stand = self.held(state), self.on_plate(state), self.stands["D"]
        if not held:
            return "serve nothing", Macro(state.at)
        if held == "plate" and sorted(dish) == sorted(self.recipe.dish):
            return "serve the dish", Macro(stand, ((state._replace(at=stand), "delivered"),))
        gone = dish if held == "plate" else [held]
        back = state._replace(
            at=stand,
            places=tuple("table" if f in gone else p for f, p in zip(self.foods, state.places, strict=True)),
            chopped=tuple(c and f not in gone for f, c in zip(self.foods, state.chopped, strict=True)),
            has_plate=False,
        )
        what = held if held != "plate" else "dish" if dish else "empty plate"
        return f"serve the {what}", Macro(stand, ((back, "wrong"),))

    def _chop(self, state: State) -> tuple[str, Macro]:
        board = next((board for board in self.boards if self.stands[board] == state.at), "")
        food = self.on(state, board)
        if self.held(state) or not food or state.chopped[self.foods.index(food)]:
            return "chop nothing", Macro(state.at)
        after = state._replace(chopped=tuple(c or f == food for f, c in zip(self.foods, state.chopped, strict=True)))
        return f"chop the {food}", Macro(state.at, (*[(state, "")] * (CHOPPING - 1), (after, food)))


def _apart(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


@functools.cache
def _path(start: Cell, end: Cell) -> tuple[Cell, ...]:
    """The cells after ``start`` on a shortest way over the floor to ``end`` (breadth first)."""
    came: dict[Cell, Cell] = {start: start}
    queue = [start]
    for cell in queue:
        if cell == end:
            break
        for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
            after = (cell[0] + dx, cell[1] + dy)
            if MAP[after[1]][after[0]] == "." and after not in came:
                came[after] = cell
                queue.append(after)
    way = [end]
    while way[-1] != start:
        way.append(came[way[-1]])
    return tuple(reversed(way[:-1]))
