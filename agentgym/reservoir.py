"""A uniform sample of a stream in bounded memory (Vitter 1985, algorithm R), on disk as one .npz file. Numpy only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from agentgym.errors import ConfigError

_ARRAYS = {"x": np.float32, "mask": np.bool_, "y": np.float32, "t": np.float32}


class Reservoir:
    """What Deep CFR remembers: (x, legal actions, target, iteration) of every information set visited.

    After n items, every one of them is kept with probability min(1, capacity / n).

    Attributes:
        seen: Items offered so far.
    """

    def __init__(self, capacity: int, inputs: int, actions: int, rng: np.random.Generator | int = 0):
        """Start empty.

        Args:
            capacity: Items kept at most; memory is taken as they come.
            inputs: Numbers of x.
            actions: Numbers of a target.
            rng: Generator, or its seed, that decides what is replaced.

        Raises:
            ConfigError: If a size is below 1.
        """
        for name, size in (("capacity", capacity), ("inputs", inputs), ("actions", actions)):
            if size < 1:
                raise ConfigError(f"reservoir {name}={size}: must be at least 1")
        self.capacity, self.seen = capacity, 0
        self.rng = np.random.default_rng(rng)
        self.x = np.empty((capacity, inputs), np.float32)
        self.mask = np.empty((capacity, actions), np.bool_)
        self.y = np.empty((capacity, actions), np.float32)
        self.t = np.empty(capacity, np.float32)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, x: np.ndarray, mask: np.ndarray, y: np.ndarray, t: float) -> None:
        """Offer items.

        Args:
            x: ``[n, inputs]``.
            mask: Legal actions ``[n, actions]``.
            y: Targets, 0 where illegal ``[n, actions]``.
            t: The iteration they come from.
        """
        number = self.seen + np.arange(len(x))
        place = np.where(number < self.capacity, number, self.rng.integers(0, number + 1))
        kept = np.flatnonzero(place < self.capacity)
        _, last = np.unique(place[kept][::-1], return_index=True)
        kept = kept[::-1][last]  # Of items for the same place, the latest.
        place = place[kept]
        self.x[place], self.mask[place], self.y[place], self.t[place] = x[kept], mask[kept], y[kept], t
        self.seen += len(x)

    def save(self, file: Path) -> None:
        """Write everything, the generator too; the file appears whole or not at all."""
        tmp = file.with_name(f".{file.name}.tmp-{os.getpid()}")
        header = {"capacity": self.capacity, "seen": self.seen, "rng": self.rng.bit_generator.state}
        try:
            with tmp.open("wb") as handle:
                arrays = {name: getattr(self, name)[: len(self)] for name in _ARRAYS}
                np.savez(handle, header=np.array(json.dumps(header)), **arrays)
                handle.flush()
                os.fsync(handle.fileno())
            tmp.replace(file)
        finally:
            tmp.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> Reservoir:
        """Read what `save` wrote; it goes on as if it had never been away.

        Raises:
            ConfigError: If the file is missing, cut off, altered, or contradicts itself.
        """
        try:
            with np.load(file, allow_pickle=False) as saved:
                header = json.loads(str(saved["header"]))
                arrays = {name: saved[name] for name in _ARRAYS}
            found = cls(header["capacity"], arrays["x"].shape[1], arrays["y"].shape[1])
            found.seen = header["seen"]
            found.rng.bit_generator.state = header["rng"]
            found._fill(arrays)
        except FileNotFoundError as error:
            raise ConfigError(f"{file}: no such reservoir") from error
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{file} is a damaged reservoir ({reason}): take an older one or begin anew") from error
        return found

    def _fill(self, arrays: dict[str, np.ndarray]) -> None:
        if not isinstance(self.seen, int) or self.seen < 0:
            raise ValueError(f"seen is {self.seen!r}, expected a count")
        size = len(self)
        for name, array in arrays.items():
            mine = getattr(self, name)
            if array.dtype != _ARRAYS[name] or array.shape != (size, *mine.shape[1:]):
                expected = f"{np.dtype(_ARRAYS[name])} {(size, *mine.shape[1:])}"
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {expected}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} has numbers that are not finite")
            mine[:size] = array
        if size and not arrays["mask"].any(1).all():
            raise ValueError("an item has no legal action")
        if (arrays["y"][~arrays["mask"]] != 0).any():
            raise ValueError("an illegal action has a target")
        if (arrays["t"] < 1).any():
            raise ValueError("an iteration is below 1")
