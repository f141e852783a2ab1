"""The parquet half of ``agentgym.store``: typed columns, so that pandas, polars and DuckDB read the files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from agentgym import errors

_ROW_GROUP = 256


def pyarrow() -> tuple[Any, Any]:
    """Import ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        MissingDependency: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise errors.missing("pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet


def write_rows(file: IO[bytes], rows: Iterable[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write one row per trajectory.

    Args:
        file: Open for writing.
        rows: Keys as in ``schema``; consumed in batches.
        metadata: Stored in the footer of the file.

    Raises:
        ValueError, TypeError, OverflowError: A value does not fit its column.
    """
    pa, parquet = pyarrow()
    columns = schema(metadata)
    rest = iter(rows)
    with parquet.ParquetWriter(file, columns, compression="zstd") as writer:
        while batch := list(itertools.islice(rest, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(batch, columns))


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in the footer of a file."""
    _, parquet = pyarrow()
    found = parquet.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items()}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file, in batches."""
    _, parquet = pyarrow()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROW_GROUP):
            yield from batch.to_pylist()


def schema(metadata: dict[str, str] | None = None) -> Any:
    """The columns: one per field of ``Trajectory``.

    ``info`` is JSON text, since its keys differ by environment (that of a turn too); log-probabilities are doubles,
    since Python floats are; pictures are the names of files.

    Args:
        metadata: Metadata of the schema.

    Returns:
        A ``pyarrow.Schema``.
    """
    pa, _ = pyarrow()
    text, flag, small, integer, real = pa.string(), pa.bool_(), pa.int32(), pa.int64(), pa.float64()
    message = {"role": text, "content": text}
    image = {"hash": text, "start": small, "stop": small, "first": small, "columns": small}
    edit = {"turn": small, "kept": small, "dropped": small, "before": text, "after": text}
    segment = {
        "ids": pa.list_(small),
        "mask": pa.list_(pa.int8()),
        "logps": pa.list_(real),
        "versions": pa.list_(small),
        "edit": pa.struct(list(edit.items())),
        "advantages": pa.list_(real),
        "old_logps": pa.list_(real),
        "weights": pa.list_(real),
        "images": pa.list_(pa.struct(list(image.items()))),
    }
    candidate = {"ids": pa.list_(small), "words": small, "logp": real}
    call = {"name": text, "arguments": text, "output": text, "status": text, "exit_code": small, "seconds": real}
    turn = {
        "observation": text,
        "segment": small,
        "prompt_start": small,
        "start": small,
        "stop": small,
        "text": text,
        "action": text,
        "parse_error": text,
        "reward": real,
        "finish": text,
        "policy_s": real,
        "env_s": real,
        "candidates": pa.list_(pa.struct(list(candidate.items()))),
        "calls": pa.list_(pa.struct(list(call.items()))),
        "probe": real,
        "info": text,
    }
    columns = {
        "env_id": text,
        "env_seed": integer,
        "group": text,
        "member": small,
        "sampling_seed": integer,
        "policy": text,
        "messages": pa.list_(pa.struct(list(message.items()))),
        "segments": pa.list_(pa.struct(list(segment.items()))),
        "turns": pa.list_(pa.struct(list(turn.items()))),
        "status": text,
        "success": flag,
        "error": text,
        "attempts": small,
        "info": text,
        "final_observation": text,
        "pictures": pa.list_(text),
    }
    return pa.schema(list(columns.items()), metadata=metadata)
