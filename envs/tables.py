"""Tables for classification: the data sets that ship inside scikit-learn, and CSV files such as OpenML's."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentgym.errors import ConfigError, missing, unknown

DATASETS = ("breast_cancer", "digits", "iris", "wine")
"""Names of the data sets that ship inside scikit-learn."""

MISSING = ("", "?", "NA", "NaN", "nan", "null")
"""What a missing value is written as in a CSV file."""

_LISTED = 20


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with a class each.

    Attributes:
        name: What it is called.
        features: Names of the columns of ``X``.
        categories: For each of them how many categories it has, 0 if it holds numbers.
        classes: Names of the classes.
        X: Features, float64 of shape ``[n, d]``; categories are numbered, NaN where a value is missing.
        y: Number of the class, int64 of shape ``[n]``.
    """

    name: str
    features: tuple[str, ...]
    categories: tuple[int, ...]
    classes: tuple[str, ...]
    X: np.ndarray
    y: np.ndarray

    def describe(self) -> str:
        """Size, classes, features and missing values in words."""
        rows = [f"{name} ({np.sum(self.y == k)} rows)" for k, name in enumerate(self.classes)]
        columns = [
            name + (f" (category, 0 to {count - 1})" if count else "")
            for name, count in zip(self.features, self.categories, strict=True)
        ]
        gaps = np.isnan(self.X).sum(axis=0)
        absent = [f"{name} {gap}" for name, gap in zip(self.features, gaps, strict=True) if gap]
        return (
            f"Data set {self.name}: {len(self.y)} rows, {len(self.features)} features, {len(self.classes)} classes.\n"
            f"Classes, numbered from 0: {_shortened(rows)}.\n"
            f"Features: {_shortened(columns)}.\n"
            + (f"Missing values are NaN: {_shortened(absent)}." if absent else "No value is missing.")
        )


def _shortened(items: list[str]) -> str:
    more = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {more} more" if more > 0 else "")


@functools.cache
def builtin(name: str) -> Table:
    """One of `DATASETS`.

    Raises:
        ConfigError: If there is none of that name.
        MissingDependency: If scikit-learn is not installed.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing("scikit-learn", "datascience") from error
    data: Any = getattr(datasets, f"load_{name}")()
    features = tuple(map(str, data.feature_names))
    classes = tuple(map(str, data.target_names))
    return Table(name, features, (0,) * len(features), classes, data.data.astype(float), data.target.astype(np.int64))


def read_csv(path: str | Path, target: str) -> Table:
    """Read a CSV file with a header, as OpenML writes them.

    A column in which every value is a number holds numbers, any other one categories, numbered in the order of their
    names. Rows without a class are left out.

    Args:
        path: The file.
        target: The column with the class.

    Raises:
        ConfigError: If it is no such file, or is of no use for classification.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[value.strip() for value in row] for row in csv.reader(file, skipinitialspace=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"csv {path}: it cannot be read: {error}") from error
    if not rows:
        raise ConfigError(f"csv {path}: it is empty; the first line names the columns")
    header, rows = rows[0], rows[1:]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ConfigError(f"csv {path}: row {number} has {len(row)} values, and there are {len(header)} columns")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ConfigError(f"csv {path}: more than one column is called {twice[0]!r}")
    if target not in header:
        raise unknown(f"target column of {path}", target, header)
    if len(header) < 2:
        raise ConfigError(f"csv {path}: there is no column but the target")
    place = header.index(target)
    rows = [row for row in rows if row[place] not in MISSING]
    counts = Counter(row[place] for row in rows)
    if len(counts) < 2:
        raise ConfigError(f"csv {path}: column {target!r} has {len(counts)} classes, and 2 at least are needed")
    rarest, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < 2:
        raise ConfigError(f"csv {path}: class {rarest!r} has one row, and each half of the rows needs one")
    classes, y = _numbered([row[place] for row in rows])
    columns = [_column([row[k] for row in rows]) for k in range(len(header)) if k != place]
    return Table(
        name=path.stem,
        features=tuple(name for name in header if name != target),
        categories=tuple(count for count, _ in columns),
        classes=classes,
        X=np.column_stack([values for _, values in columns]),
        y=y.astype(np.int64),
    )


def _column(values: list[str]) -> tuple[int, np.ndarray]:
    """Number of categories (0: numbers) and float64 values, NaN where one is missing."""
    there = np.array([value not in MISSING for value in values])
    present = [value for value in values if value not in MISSING]
    column = np.full(len(values), np.nan)
    try:
        column[there] = [float(value) for value in present]
        categories = 0
    except ValueError:
        names, column[there] = _numbered(present)
        categories = len(names)
    if np.isinf(column).any():
        raise ConfigError("csv: a value is infinite")
    return categories, column


def _numbered(values: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different values in order, and the number of each."""
    names, numbers = np.unique(np.array(values, dtype=object), return_inverse=True)
    return tuple(map(str, names)), numbers.astype(float)
