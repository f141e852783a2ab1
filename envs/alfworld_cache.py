"""Translated games of ALFWorld on disk: to read one takes a tenth of the time that its translation does.

Below ``$AGENTGYM_CACHE`` (``~/.cache/agentgym``), one file a game, named after what went into it. A file that cannot be
read is made anew; where none can be written, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import zlib
from pathlib import Path
from typing import NamedTuple

from agentgym.envs.alfworld_games import cache_file

from agentgym import store


class Translation(NamedTuple):
    """What the translator says of a game.

    Attributes:
        sas: The task for the planner, compressed.
        types: Object -> the names of its type and of those above it.
        facts: What holds at the start: predicate and arguments.
        parameters: Action -> name and type of its placeholders.
        changing: Predicates that actions change.
    """

    sas: bytes
    types: dict[str, list[str]]
    facts: list[list[str]]
    parameters: dict[str, list[list[str]]]
    changing: list[str]


def place(domain: str, problem: str) -> Path:
    """Where a game's translation is kept."""
    version = importlib.metadata.version("fast-downward-textworld")
    name = hashlib.sha256("\0".join((version, domain, problem)).encode()).hexdigest()[:32]
    return cache_file().parent / "translated" / name


def read(path: Path) -> Translation | None:
    """A translation that was kept, or None."""
    try:
        head, sas = path.read_bytes().split(b"\n", 1)
        zlib.decompress(sas)
        return Translation(sas, **json.loads(head))
    except (OSError, ValueError, TypeError, zlib.error):
        return None


def write(path: Path, made: Translation) -> None:
    """Keep a translation; the file appears whole or not at all."""
    head = json.dumps({name: value for name, value in made._asdict().items() if name != "sas"})
    with contextlib.suppress(OSError), store.atomic_file(path) as file:
        file.write(head.encode() + b"\n" + made.sas)
