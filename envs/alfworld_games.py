"""Where the games of ALFWorld are, and which there are.

Two layouts are read: the official one, ``json_2.1.1/{train,valid_seen,…}/NAME/TRIAL/game.tw-pddl``, and one packed
file, ``*.jsonl.xz``: a line with the ``domain`` and ``grammar`` of all games, in which the goal is called
``UNKNOWN GOAL``, and a line a game with ``split``, ``name``, ``trial``, ``goal``, ``walkthrough`` and ``problem``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgym.envs.alfworld_text import GOAL

from agentgym.errors import ConfigError, MissingDependency, unknown

TASK_TYPES = {
    1: "pick_and_place_simple",
    2: "look_at_obj_in_light",
    3: "pick_clean_then_place_in_recep",
    4: "pick_heat_then_place_in_recep",
    5: "pick_cool_then_place_in_recep",
    6: "pick_two_obj_and_place",
}
"""ALFWorld's numbers of its kinds of tasks."""

SPLITS = {"train": "train", "dev": "valid_seen", "test": "valid_unseen"}
"""Our names of ALFWorld's splits; its own names, and ``valid_train``, are taken too."""

_OFFICIAL = ("train", "valid_seen", "valid_unseen", "valid_train")
_GOAL = re.compile(r'(Your task is to: )([^"#\[\]{}|\\]+?)(\.")')


@dataclass(frozen=True)
class Game:
    """A game as it lies on disk.

    Attributes:
        split: ALFWorld's name of it.
        name: Such as ``pick_heat_then_place_in_recep-Apple-None-Fridge-13``.
        trial: Such as ``trial_T20190907_174127_043461``.
        goal: The task in words.
        walkthrough: Commands that solve it.
        domain: PDDL, the same for all games.
        grammar: textworld's ``.twl2`` with `agentgym.envs.alfworld_text.GOAL` for the goal.
        packed: The PDDL of the problem, compressed.
    """

    split: str
    name: str
    trial: str
    goal: str
    walkthrough: tuple[str, ...]
    domain: str
    grammar: str
    packed: bytes

    @property
    def problem(self) -> str:
        """PDDL."""
        return zlib.decompress(self.packed).decode()

    @property
    def task_type(self) -> str:
        """One of `TASK_TYPES`."""
        return self.name.partition("-")[0]

    @property
    def id(self) -> str:
        """``split/name/trial``."""
        return f"{self.split}/{self.name}/{self.trial}"


def official_split(split: Any) -> str:
    """ALFWorld's name of a split.

    Raises:
        ConfigError: There is none of that name.
    """
    if not isinstance(split, str) or split not in (*SPLITS, *_OFFICIAL):
        raise unknown("split", str(split), (*SPLITS, *_OFFICIAL))
    return SPLITS.get(split, split)


def task_types(chosen: Iterable[int | str] | int | str | None) -> frozenset[str]:
    """The names of kinds of tasks, given by number or name; all if None.

    Raises:
        ConfigError: There is no such kind.
    """
    if chosen is None:
        return frozenset(TASK_TYPES.values())
    many = [chosen] if isinstance(chosen, int | str) else list(chosen)
    if not many:
        raise ConfigError("task_types is empty: name at least one of 1 to 6, or None for all")
    for kind in many:
        if isinstance(kind, bool) or kind not in (*TASK_TYPES, *TASK_TYPES.values()):
            names = ", ".join(f"{number} ({name})" for number, name in TASK_TYPES.items())
            raise ConfigError(f"unknown task type {kind!r}: choose from {names}")
    return frozenset(TASK_TYPES[kind] if isinstance(kind, int) else kind for kind in many)


def cache_file() -> Path:
    """Where ``python -m agentgym.envs.alfworld_fetch`` puts the games."""
    root = os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym"
    return Path(root) / "alfworld" / "games.jsonl.xz"


def locate(data: str | os.PathLike[str] | None) -> Path:
    """The packed file or the folder with the splits.

    Args:
        data: Path given by the user; None: ``$ALFWORLD_DATA``, then the cache.

    Raises:
        ConfigError: There is nothing of the kind at the path.
        MissingDependency: Nothing is given, and nothing is in the cache.
    """
    source, given = "data", data
    if data is None:
        source, given = "ALFWORLD_DATA", os.environ.get("ALFWORLD_DATA")
    if not given:
        if cache_file().is_file():
            return cache_file()
        raise MissingDependency(
            "the games of ALFWorld are not here: fetch them with 'python -m agentgym.envs.alfworld_fetch', or set "
            "ALFWORLD_DATA to a folder with json_2.1.1, or to a packed .jsonl.xz file"
        )
    path = Path(given).expanduser()
    if path.is_file():
        return path
    folders = [folder for folder in (path / "json_2.1.1", path) if any((folder / s).is_dir() for s in _OFFICIAL)]
    if not folders:
        raise ConfigError(f"{source}={given}: neither a .jsonl.xz file nor a folder with json_2.1.1/train")
    return folders[0]


def games(data: str | os.PathLike[str] | None, split: str, kinds: frozenset[str]) -> list[Game]:
    """The games of a split and of these kinds, in an order that depends on their names alone.

    Args:
        data: See `locate`.
        split: ALFWorld's name.
        kinds: Names of kinds of tasks.

    Raises:
        ConfigError: There are none, or the data are broken.
        MissingDependency: There are no data.
    """
    path = locate(data)
    found = [game for game in _all(path, split, _stamp(path)) if game.task_type in kinds]
    if not found:
        raise ConfigError(f"{path} has no games of split {split!r} and task types {', '.join(sorted(kinds))}")
    return found


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=4)
def _all(path: Path, split: str, stamp: tuple[int, int]) -> tuple[Game, ...]:
    read = from_file(path, split) if path.is_file() else from_folder(path, split)
    return tuple(sorted(read, key=lambda game: hashlib.sha256(game.id.encode()).digest()))


def from_file(path: Path, split: str | None = None) -> Iterator[Game]:
    """Read a packed file.

    Args:
        path: The file.
        split: Only this one; all if None.

    Raises:
        ConfigError: It is not such a file.
    """
    try:
        with lzma.open(path, "rb") as file:
            head = json.loads(file.readline())
            for line in file:
                row = json.loads(line)
                if split in (None, row["split"]):
                    yield _game(row, head["domain"], head["grammar"])
    except (lzma.LZMAError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} cannot be read as packed games of ALFWorld (.jsonl.xz): {what}") from error


def _game(row: dict[str, Any], domain: str, grammar: str) -> Game:
    texts = [str(row[key]) for key in ("split", "name", "trial", "goal")]
    walkthrough = tuple(map(str, row["walkthrough"] or ()))
    return Game(*texts, walkthrough, domain, grammar, zlib.compress(row["problem"].encode(), 1))


def from_folder(folder: Path, split: str) -> Iterator[Game]:
    """Read a split of the official layout; what ALFWorld itself leaves out is left out.

    Raises:
        ConfigError: A file is broken.
    """
    for path in sorted((folder / split).glob("*/*/game.tw-pddl")):
        name, trial = path.parent.parent.name, path.parent.name
        if "movable" in name or "Sliced" in name:
            continue
        try:
            content = json.loads(path.read_bytes())
            if content.get("solvable"):
                row = {"split": split, "name": name, "trial": trial}
                yield _game(row | unpack(content), *shared(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is not a game of ALFWorld: {type(error).__name__}: {error}") from error


def unpack(content: dict[str, Any]) -> dict[str, Any]:
    """What of a ``game.tw-pddl`` is its own: ``goal``, ``walkthrough``, ``problem``."""
    goal = _GOAL.search(content["grammar"])
    return {
        "goal": goal[2] if goal else "",
        "walkthrough": content.get("walkthrough") or [],
        "problem": content["pddl_problem"],
    }


def shared(content: dict[str, Any]) -> tuple[str, str]:
    """Domain and grammar of a ``game.tw-pddl``, the goal taken out; one string for all games with the same."""
    grammar = _GOAL.sub(lambda found: f"{found[1]}{GOAL}{found[3]}", content["grammar"], count=1)
    return sys.intern(content["pddl_domain"]), sys.intern(grammar)
