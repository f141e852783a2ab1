"""Images in decoding: seen once each until the weights change, and spliced into the forwards that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from agentgym.learner.attention import Splice
from agentgym.learner.places import has_grid, positions_of
from agentgym.learner.vision import Features, splice, vision_of
from agentgym.pictures import Picture
from agentgym.types import ImageSpan

_MOST = 65536
"""Placeholders whose features are kept; older ones are computed again if they come back."""


@dataclass(frozen=True)
class View:
    """The images in a prompt.

    Attributes:
        length: Tokens of the prompt.
        images: Where they stand.
        pictures: What they are, by hash.
    """

    length: int
    images: Sequence[ImageSpan]
    pictures: Mapping[str, Picture]

    @cached_property
    def _places(self) -> np.ndarray:
        return positions_of(self.length, self.images)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Positions ``[3, stop - start]`` of tokens of the row, which goes on behind the prompt as text does."""
        places = self._places
        rest = np.arange(max(start, self.length), stop) + int(places[:, -1].max()) + 1 - self.length
        return np.concatenate([places[:, start:stop], np.broadcast_to(rest, (3, len(rest)))], 1)


Part = tuple[View, int, int]
"""Tokens of a row that one forward reads: the row's images, the first token, how many."""


def positions_in(parts: Sequence[Part]) -> np.ndarray | None:
    """Positions on three axes ``[3, T]``; None where they are just the places in the rows."""
    if not any(has_grid(view.images) for view, _, _ in parts):
        return None
    return np.concatenate([view.positions(first, first + n) for view, first, n in parts], 1)


class Eyes:
    """What a model has seen with its present weights."""

    def __init__(self, model: Any):
        """See with the vision tower of a model."""
        self._model = model
        self._features: dict[str, Features] = {}

    def clear(self) -> None:
        """Forget everything: the weights changed."""
        self._features.clear()

    def look(self, parts: Sequence[Part]) -> Splice | None:
        """The features of the images that one forward reads, in their places; None if it reads text alone."""
        found: list[Features] = []
        at: list[int] = []
        base = 0
        for view, first, n in parts:
            for image in view.images:
                start, stop = max(image.start, first), min(image.stop, first + n)
                if start < stop:
                    k = image.first + start - image.start
                    found.append(self._see(view.pictures[image.hash]).part(k, k + stop - start))
                    at += range(base + start - first, base + stop - first)
            base += n
        return splice(found, at) if at else None

    def _see(self, picture: Picture) -> Features:
        """The features of an image. Each is computed alone, so that they do not depend on what else there is to see."""
        if picture.hash not in self._features:
            vision = vision_of(self._model)
            assert vision is not None
            (new,) = vision.see(self._model, [picture])
            while self._features and sum(len(f.embeds) for f in self._features.values()) > _MOST:
                del self._features[next(iter(self._features))]
            self._features[picture.hash] = new
        return self._features[picture.hash]
