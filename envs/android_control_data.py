"""The recorded episodes of AndroidControl (Li et al., 2024, arXiv:2406.03679): splits, and any step of them at once.

A folder of data holds the published files: the shards ``android_control-00000-of-00020`` and so on (GZIP TFRecords, a
``tf.train.Example`` an episode), ``splits.json`` and ``test_subsplits.json``. In a compressed file no step can be found
without reading all before it, so the first use of a split unpacks it below ``$AGENTGYM_CACHE``: one file with the
screenshots and elements of every step, and an index of where they are. To do that beforehand::

    python -m agentgym.envs.android_control_data FOLDER --split test
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgym.envs import android_control_wire as wire
from agentgym.envs.android_control_tree import Element, elements, read_forest

from agentgym.errors import AgentGymError, ConfigError, unknown
from agentgym.gui_actions import GuiAction, GuiActionError

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""Our names of the splits, and those in ``splits.json``."""

SPLIT_FILE, SUBSET_FILE, LISTED_FILE = "splits.json", "test_subsplits.json", "test_steps.json"
"""Episodes of each split; parts of ``test``; the steps of the smaller test set, in the form of GUI-R1's data."""

_VERSION = 1
_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})")
_PER_STEP = ("screenshots", "accessibility_trees", "screenshot_widths", "screenshot_heights")
_IMAGE = re.compile(r"(\d+)_(\d+)(?=\D*$)")


@dataclass(frozen=True)
class Episode:
    """A recorded episode of T actions.

    Attributes:
        id: ``episode_id``.
        goal: What was to be done.
        actions: What was done, T of them.
        instructions: What each action is for, T of them; one that took several actions is repeated.
        sizes: Width and height of the T + 1 screenshots, in pixels.
        places: Of each screenshot where it begins in the file of screens, and the bytes of picture and elements.
    """

    id: int
    goal: str
    actions: tuple[GuiAction, ...]
    instructions: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int, int], ...]


def gold_action(record: Any) -> GuiAction:
    """The action of a JSON record of the data.

    Raises:
        GuiActionError: It is none, or lacks an argument.
    """
    kind = record.get("action_type") if isinstance(record, dict) else None
    point = (round(record["x"]), round(record["y"])) if isinstance(record, dict) and {"x", "y"} <= set(record) else None
    if kind in ("click", "long_press", "wait", "navigate_home"):
        return GuiAction(kind, point)
    if kind in ("input_text", "type"):
        return GuiAction("type", point, record.get("text"))
    if kind == "scroll":
        return GuiAction(kind, None, record.get("direction"))
    if kind == "open_app":
        return GuiAction(kind, None, record.get("app_name"))
    if kind == "navigate_back":
        return GuiAction("press_back")
    raise GuiActionError(f"there is no action_type {str(kind)[:40]!r} in AndroidControl")


class Recordings:
    """The episodes of one split, of which only the index is in memory.

    Attributes:
        episodes: All with one action or more, in the order of their ids.
        skipped: Why episodes are left out, with how many.
    """

    def __init__(self, folder: Path):
        """Open a split that was unpacked.

        Raises:
            ConfigError: It cannot be read.
        """
        self._path = folder / "screens"
        try:
            self.episodes, self.skipped = _index(folder / "index.json")
            self._file = os.open(self._path, os.O_RDONLY)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{folder} is broken: remove it, and it is made anew ({error})") from error

    def picture(self, episode: Episode, step: int) -> bytes:
        """The screenshot before action ``step`` (T: the last one), as a PNG file."""
        place, size, _ = episode.places[step]
        return os.pread(self._file, size, place)

    def elements(self, episode: Episode, step: int) -> list[Element]:
        """What is on that screen.

        Raises:
            ConfigError: The file was damaged.
        """
        place, before, size = episode.places[step]
        try:
            return [Element.from_json(row) for row in json.loads(os.pread(self._file, size, place + before))]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self._path} is broken at byte {place}: remove its folder ({error})") from error

    def close(self) -> None:
        """Close the file. Safe to call again."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@functools.lru_cache(maxsize=4)
def _index(path: Path) -> tuple[tuple[Episode, ...], dict[str, int]]:
    """Episodes, and what was left out; the instances of a process share them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return tuple(map(_episode, found["episodes"])), found["skipped"]


def _episode(row: list[Any]) -> Episode:
    number, goal, actions, instructions, sizes, places = row
    return Episode(
        id=number,
        goal=goal,
        actions=tuple(GuiAction(kind, point and tuple(point), text) for kind, point, text in actions),
        instructions=tuple(instructions),
        sizes=tuple((width, height) for width, height in sizes),
        places=tuple((place, picture, told) for place, picture, told in places),
    )


def cache_folder() -> Path:
    """Where unpacked and synthetic data are kept."""
    root = os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym"
    return Path(root) / "android_control"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, which ``make`` fills if it is not there; it appears whole, and is made by one at a time.

    Raises:
        ConfigError: It cannot be written.
    """
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                try:
                    make(part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error}") from error
    return folder


def open_split(data: Path, split: str, on_episode: Callable[[int], None] = lambda count: None) -> Recordings:
    """The episodes of a split of a folder of data, which is unpacked first if need be.

    Args:
        data: The folder.
        split: A key of `SPLITS`.
        on_episode: Called after each episode that is read while unpacking, with how many there were.

    Raises:
        ConfigError: The folder has no such data or split, or cannot be unpacked.
        RecordError: A shard is truncated or corrupt.
    """
    if split not in SPLITS:
        raise unknown("split", str(split), SPLITS)
    files = shards(data)
    wanted = frozenset(_ids(data / SPLIT_FILE, SPLITS[split]))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (*files, data / SPLIT_FILE)]
    digest = hashlib.sha256(repr((_VERSION, str(data.resolve()), stats)).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{split}-{digest}"
    return Recordings(made_once(folder, lambda part: _unpack(files, wanted, part, on_episode)))


def shards(data: Path) -> list[Path]:
    """The files of records of a folder of data.

    Raises:
        ConfigError: There are none, or some are missing.
    """
    if not data.is_dir():
        raise ConfigError(f"data: there is no folder {data}")
    found = {path: match for path in sorted(data.iterdir()) if (match := _SHARD.fullmatch(path.name))}
    if not found:
        raise ConfigError(f"data: {data} has no files like android_control-00000-of-00020")
    count = max(int(match[2]) for match in found.values())
    missing = sorted(set(range(count)) - {int(match[1]) for match in found.values()})
    if missing:
        raise ConfigError(f"data: {len(missing)} of {count} files of {data} are missing, such as number {missing[0]}")
    return list(found)


def subset(data: Path, name: str) -> frozenset[int]:
    """The ids of the episodes of a part of ``test``: ``IDD``, ``app_unseen``, ``task_unseen``, ``category_unseen``.

    Raises:
        ConfigError: There is no such part.
    """
    return frozenset(_ids(data / SUBSET_FILE, name))


def listed(data: Path) -> frozenset[tuple[int, int]]:
    """The steps (episode, number from 0) that `LISTED_FILE` lists: the smaller of the two test sets.

    Its entries name their screenshot ``image``: ``…/EPISODE_STEP.png``.

    Raises:
        ConfigError: It cannot be read.
    """
    path = data / LISTED_FILE
    rows = _json(path)
    found = [_IMAGE.search(str(row.get("image")) if isinstance(row, dict) else "") for row in rows]
    if not rows or not isinstance(rows, list) or None in found:
        raise ConfigError(f'{path}: it must be a list of objects with "image": "…/EPISODE_STEP.png"')
    return frozenset((int(match[1]), int(match[2])) for match in found if match)


def _ids(path: Path, name: str) -> list[int]:
    value = _json(path)
    if not isinstance(value, dict) or not all(isinstance(ids, list) for ids in value.values()):
        raise ConfigError(f"{path}: it must be an object with lists of episode ids")
    if name not in value:
        raise unknown(f"part of {path.name}", name, value)
    return [int(number) for number in value[name]]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _unpack(files: list[Path], wanted: frozenset[int], folder: Path, on_episode: Callable[[int], None]) -> None:
    rows, skipped, count = [], Counter[str](), 0
    with open(folder / "screens", "wb") as screens:
        for path in files:
            for offset, data in wire.read_records(path):
                count += 1
                try:
                    row = _row(wire.read_example(data), wanted, screens.tell())
                except _Skipped as reason:
                    skipped[str(reason)] += 1
                except (wire.WireError, ValueError, LookupError, TypeError) as error:
                    raise wire.RecordError(path, offset, f"it is no episode of AndroidControl: {error}") from error
                else:
                    if row is not None:
                        rows.append(row[0])
                        screens.writelines(row[1])
                on_episode(count)
    rows.sort(key=lambda row: row[0])
    absent = len(wanted) - len(rows) - sum(skipped.values())
    if absent:
        skipped["in the split, and in no file"] = absent
    if not rows:
        raise ConfigError(f"data: {files[0].parent} has no episode of the split")
    (folder / "index.json").write_text(json.dumps({"episodes": rows, "skipped": skipped}), encoding="utf-8")


class _Skipped(Exception):
    """Why an episode cannot be used."""


def _row(example: dict[str, Any], wanted: frozenset[int], place: int) -> tuple[list[Any], list[bytes]] | None:
    """An episode of the index, and what goes into the file of screens from ``place`` on; None if it is not wanted."""
    (number,) = example["episode_id"]
    if number not in wanted:
        return None
    records = [json.loads(record) for record in example["actions"]]
    instructions = [text.decode() for text in example["step_instructions"]]
    lengths = {name: len(example[name]) for name in _PER_STEP}
    if set(lengths.values()) != {len(records) + 1} or len(instructions) != len(records):
        raise ValueError(f"episode {number} has {len(records)} actions, {len(instructions)} instructions and {lengths}")
    if not records:
        raise _Skipped("without an action")
    try:
        actions = [gold_action(record) for record in records]
    except GuiActionError as error:
        raise _Skipped(str(error)) from error
    sizes = list(zip(example["screenshot_widths"], example["screenshot_heights"], strict=True))
    places, parts = [], []
    for picture, tree, (width, height) in zip(
        example["screenshots"], example["accessibility_trees"], sizes, strict=True
    ):
        told = json.dumps([e.to_json() for e in elements(read_forest(tree), width, height)]).encode()
        places.append((place, len(picture), len(told)))
        parts += [picture, told]
        place += len(picture) + len(told)
    shown = [(action.kind, action.point, action.text) for action in actions]
    return [number, example["goal"][0].decode(), shown, instructions, sizes, places], parts


@contextlib.contextmanager
def _bar(total: str) -> Iterator[Callable[[int], None]]:
    from agentgym.run import progress

    with progress(disable=not sys.stderr.isatty()) as bar:
        job = bar.add_task(total, total=None, note="")
        yield lambda count: bar.update(job, completed=count, note=f"{count} episodes read")


def main(arguments: list[str] | None = None) -> int:
    """Unpack a split."""
    parser = argparse.ArgumentParser(
        prog="python -m agentgym.envs.android_control_data", description="Unpack a split of AndroidControl."
    )
    parser.add_argument("folder", type=Path, help="folder with the published files")
    parser.add_argument("--split", default="test", choices=SPLITS)
    args = parser.parse_args(arguments)
    try:
        with _bar("unpack") as on_episode, contextlib.closing(open_split(args.folder, args.split, on_episode)) as found:
            steps = sum(len(episode.actions) for episode in found.episodes)
            print(f"{args.split}: {len(found.episodes)} episodes, {steps} steps")
            for reason, count in found.skipped.items():
                print(f"left out: {count} {reason}")
    except AgentGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
