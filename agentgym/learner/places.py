"""Images in rows of tokens, as numbers: what tells placeholders apart, and the positions of what stands around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentgym.types import ImageSpan


def keys_of(ids: list[int], images: Sequence[ImageSpan]) -> list[int]:
    """Token ids, with a number above all of them for the placeholders of each image.

    Rows with equal keys have equal hidden states: what is shared or cached is found by them.
    """
    if not images:
        return ids
    keys = list(ids)
    for image in images:
        keys[image.start : image.stop] = [1 << 62 | int(image.hash[:15], 16)] * (image.stop - image.start)
    return keys


def positions_of(length: int, images: Sequence[ImageSpan]) -> np.ndarray:
    """Positions of the tokens of a row on the axes time, height and width ``[3, length]``, as M-RoPE counts them.

    Text goes on by one on all axes. The placeholders of an image share a time and lie on a grid; the text behind it
    goes on from the largest position so far. Where images have no grid the axes are the same.

    Source: Qwen2-VL (2409.12191, section 2.1).
    """
    out = np.empty((3, length), np.int64)
    at = position = 0
    for image in (image for image in images if image.columns):
        out[:, at : image.start] = np.arange(position, position + image.start - at)
        position += image.start - at
        places = np.arange(image.stop - image.start)
        height, width = places // image.columns, places % image.columns
        out[:, image.start : image.stop] = position + np.stack([np.zeros_like(places), height, width])
        position += max(int(height[-1]) + 1, image.columns)
        at = image.stop
    out[:, at:] = np.arange(position, position + length - at)
    return out


def has_grid(images: Sequence[ImageSpan]) -> bool:
    """Whether positions are two-dimensional somewhere."""
    return any(image.columns for image in images)
