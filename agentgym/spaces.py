"""Observation and action spaces for language."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class UnicodeText(gym.Space[str]):
    """Any Unicode string up to a length; gymnasium's ``Text`` holds only a fixed small alphabet."""

    def __init__(self, max_length: int = 65536, seed: int | np.random.Generator | None = None):
        """Make the space.

        Args:
            max_length: Longest string, in characters.
            seed: Seed of ``sample``.

        Raises:
            ValueError: If the length is negative.
        """
        if max_length < 0:
            raise ValueError(f"max_length is {max_length}: it must be 0 or more")
        self.max_length = max_length
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw up to 16 printable ASCII characters."""
        length = int(self.np_random.integers(min(1, self.max_length), min(16, self.max_length) + 1))
        return "".join(chr(c) for c in self.np_random.integers(32, 127, length))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string within the length."""
        return isinstance(x, str) and len(x) <= self.max_length

    @property
    def is_np_flattenable(self) -> bool:
        """Strings do not flatten into arrays."""
        return False

    def __repr__(self) -> str:
        return f"UnicodeText(max_length={self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length
