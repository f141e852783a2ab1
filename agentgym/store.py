"""Trajectories on disk: JSONL to append to while a run goes on, parquet to hand to pandas or DuckDB.

Both formats hold every field of a ``Trajectory`` exactly and name the version of their schema. A JSONL file
is a header line, then one trajectory a line; a kill in the middle of an append costs at most the last line.

Images lie beside the file, each once, as ``images/HASH.png``; a trajectory read back knows where, and reads an image
when it is asked for its pixels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from agentgym import errors, pictures, store_parquet
from agentgym.pictures import Picture
from agentgym.replay import Mismatch, replay
from agentgym.types import Candidate, Edit, ImageSpan, Segment, ToolUse, Trajectory, Turn

__all__ = ["Mismatch", "append", "atomic_file", "iter_read", "read", "replay", "write"]

SCHEMA_VERSION = 1
_KEY = "agentgym_trajectories"
_IMAGES = "images"
_HEADER = json.dumps({_KEY: SCHEMA_VERSION, "line": "one agentgym.types.Trajectory as JSON"}).encode() + b"\n"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file that appears under ``path``, whole and on disk, only if the block ends without an error.

    Args:
        path: Where the file will be; missing folders are made.

    Yields:
        A binary file in the same folder, renamed at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> None:
    """Write trajectories to a new file, or replace an old one, atomically.

    Args:
        path: Ends in ``.jsonl`` or ``.parquet``, which decides the format.
        trajectories: Consumed one by one.

    Raises:
        ConfigError: The suffix is unknown, or a value does not fit the format.
        MissingDependency: Parquet without pyarrow.
    """
    path = Path(path)
    parquet = _is_parquet(path)
    if parquet:
        store_parquet.pyarrow()
    with atomic_file(path) as file:
        if parquet:
            _write_parquet(file, path, trajectories)
        else:
            file.write(_HEADER)
            file.writelines(_to_line(path, trajectory) for trajectory in trajectories)


def append(path: str | os.PathLike[str], trajectories: Iterable[Trajectory]) -> None:
    """Add trajectories to the end of a JSONL file, after removing a last line that was cut.

    The data is on disk when the function returns. One writer at a time.

    Args:
        path: A ``.jsonl`` file; made if it does not exist.
        trajectories: What to add.

    Raises:
        ConfigError: Not a ``.jsonl`` file of this schema version, or a value that JSON cannot hold.
    """
    path = Path(path)
    if _is_parquet(path):
        raise errors.ConfigError(f"cannot append to {path}: a parquet file is written once; append to .jsonl")
    lines = b"".join(_to_line(path, trajectory) for trajectory in trajectories)
    path.parent.mkdir(parents=True, exist_ok=True)
    created = not path.exists()
    with open(path, "a+b") as file:
        _repair(file, path)
        file.write(lines if file.seek(0, os.SEEK_END) else _HEADER + lines)
        file.flush()
        os.fsync(file.fileno())
    if created:
        _sync_folder(path.parent)


def _keep_images(folder: Path, found: dict[str, Picture]) -> None:
    for name, picture in found.items():
        file = folder / _IMAGES / f"{name}.png"
        if not file.exists():
            with atomic_file(file) as opened:
                opened.write(picture.png)


def read(path: str | os.PathLike[str]) -> list[Trajectory]:
    """Read all trajectories of a file; see ``iter_read``."""
    return list(iter_read(path))


def iter_read(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Read the trajectories of a file one by one.

    A last JSONL line that was cut by a kill is dropped with a warning.

    Args:
        path: A ``.jsonl`` or ``.parquet`` file that this module wrote.

    Returns:
        An iterator; it holds one trajectory (JSONL) or one batch (parquet) in memory.

    Raises:
        ConfigError: No such file, a damaged file, or another schema version.
        MissingDependency: Parquet without pyarrow.
    """
    path = Path(path)
    parquet = _is_parquet(path)
    if not path.is_file():
        raise errors.ConfigError(f"no trajectory file {path}: check the path")
    return _read_parquet(path) if parquet else _read_jsonl(path)


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".parquet"):
        raise errors.ConfigError(f"cannot tell the format of {path}: use the suffix .jsonl or .parquet")
    return path.suffix == ".parquet"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- JSONL ----------------------------------------------------------------------------------------------


def _row(trajectory: Trajectory) -> dict[str, Any]:
    """The same as ``to_dict``, without copying the token lists."""
    segments = [
        {**_fields(s), "edit": s.edit and _fields(s.edit), "images": [_fields(i) for i in s.images]}
        for s in trajectory.segments
    ]
    return {
        **_fields(trajectory),
        "pictures": list(trajectory.pictures),
        "segments": segments,
        "turns": [
            {**_fields(t), "candidates": [_fields(c) for c in t.candidates], "calls": [_fields(c) for c in t.calls]}
            for t in trajectory.turns
        ],
    }


def _fields(value: Trajectory | Segment | ImageSpan | Turn | Candidate | ToolUse | Edit) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _to_line(path: Path, trajectory: Trajectory) -> bytes:
    row = _row(trajectory)
    _keep_images(path.parent, trajectory.pictures)
    try:
        try:
            text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_plain)
            return text.encode() + b"\n"
        except UnicodeEncodeError:  # a lone surrogate, which only an escape can hold
            return json.dumps(row, separators=(",", ":"), default=_plain).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise _cannot_write(path, error, trajectory) from None


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python values; anything else is an error."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.60} is not JSON")


def _cannot_write(path: Path, reason: Exception, trajectory: Trajectory | None = None) -> errors.ConfigError:
    where = ""
    if trajectory is not None:
        where = f": {trajectory.env_id}, group {trajectory.group!r}, member {trajectory.member}"
    hint = "; .jsonl holds more than .parquet" if path.suffix == ".parquet" else ""
    return errors.ConfigError(f"cannot write {path}{where}: {reason}: keep to the types of agentgym.types{hint}")


def _check_version(where: str, version: str | None) -> None:
    if version is None:
        raise errors.ConfigError(f"{where}: not a trajectory file of agentgym: check the path")
    if version != str(SCHEMA_VERSION):
        raise errors.ConfigError(
            f"{where}: schema version {version}, but this agentgym reads {SCHEMA_VERSION}: "
            "read it with the agentgym that wrote it, or upgrade with pip install -U agentgym-lab"
        )


def _check_header(path: Path, line: bytes) -> None:
    try:
        header = json.loads(line.decode())
    except (ValueError, RecursionError):
        header = None
    known = isinstance(header, dict) and _KEY in header
    _check_version(f"{path}, line 1", str(header[_KEY]) if known else None)


def _header_is_cut(line: bytes) -> bool:
    return not line.endswith(b"\n") and _HEADER.startswith(line)


def _read_jsonl(path: Path) -> Iterator[Trajectory]:
    with open(path, "rb") as file:
        header = file.readline()
        if _header_is_cut(header):
            warnings.warn(f"{path}: the header was cut while it was written; no trajectories", stacklevel=2)
            return
        _check_header(path, header)
        for number, line in enumerate(file, start=2):
            try:
                trajectory = _trajectory(path, json.loads(line.decode()))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    warnings.warn(
                        f"{path}, line {number}: the last trajectory was cut while it was written; dropped",
                        stacklevel=2,
                    )
                    return
                raise errors.ConfigError(
                    f"{path}, line {number}: not a trajectory ({type(error).__name__}: {error}): "
                    f"restore the file, or drop this line with sed -i {number}d {shlex.quote(str(path))}"
                ) from None
            yield trajectory


def _trajectory(path: Path, row: dict[str, Any]) -> Trajectory:
    names = row.get("pictures") or []
    return Trajectory.from_dict({**row, "pictures": pictures.in_folder(path.parent / _IMAGES, names)})


def _repair(file: IO[bytes], path: Path) -> None:
    """Check the header of an open JSONL file and make the file end after a whole line (or be empty)."""
    file.seek(0)
    header = file.readline()
    if _header_is_cut(header):
        file.truncate(0)
        return
    _check_header(path, header)
    start, last = _last_line(file)
    try:
        if last:
            json.loads(last.decode())
            file.write(b"\n")  # only the newline was lost
    except ValueError:
        file.truncate(start)


def _last_line(file: IO[bytes]) -> tuple[int, bytes]:
    """Where the text after the last newline starts, and that text."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start > 0 and b"\n" not in tail:
        step = min(1 << 20, start)
        start = file.seek(start - step)
        tail = file.read(step) + tail
    cut = tail.rfind(b"\n") + 1
    return start + cut, tail[cut:]


# ---- parquet --------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, trajectories: Iterable[Trajectory]) -> Iterator[dict[str, Any]]:
    for trajectory in trajectories:
        row = _row(trajectory)
        _keep_images(path.parent, trajectory.pictures)
        row["status"] = None if trajectory.status is None else str(trajectory.status)
        try:
            row["info"] = json.dumps(trajectory.info, default=_plain)
            row["turns"] = [{**t, "info": json.dumps(t["info"], default=_plain)} for t in row["turns"]]
            if any(message.keys() != {"role", "content"} for message in trajectory.messages):
                raise ValueError("a message with other keys than role and content")
        except (TypeError, ValueError) as error:
            raise _cannot_write(path, error, trajectory) from None
        yield row


def _write_parquet(file: IO[bytes], path: Path, trajectories: Iterable[Trajectory]) -> None:
    try:
        store_parquet.write_rows(file, _parquet_rows(path, trajectories), {_KEY: str(SCHEMA_VERSION)})
    except (ValueError, TypeError, OverflowError) as error:
        raise _cannot_write(path, error) from None


def _read_parquet(path: Path) -> Iterator[Trajectory]:
    try:
        _check_version(f"{path}", store_parquet.read_metadata(path).get(_KEY))
        for row in store_parquet.read_rows(path):
            turns = [{**t, "info": json.loads(t.get("info") or "{}")} for t in row["turns"]]
            yield _trajectory(path, {**row, "turns": turns, "info": json.loads(row["info"])})
    except (ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise errors.ConfigError(f"{path}: truncated or damaged parquet ({reason}): write it again") from None
