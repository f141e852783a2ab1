"""Latent strategies on disk: ``latents.json`` and the arrays, in a file that it names by its hash."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from agentgym import store
from agentgym.clusters import Clusters
from agentgym.embeddings import Encoder, make_encoder
from agentgym.errors import ConfigError
from agentgym.latents import Latents

_FORMAT = 2
_ARRAYS = ("centroids", "stances", "weights", "labels", "distances")


def save(latents: Latents, folder: Path) -> None:
    """Write latents; the new ``latents.json`` is what replaces an old content."""
    sets = (*latents.roles, latents.public)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"{name}_{i}": getattr(s, name) for i, s in enumerate(sets) for name in _ARRAYS})
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    arrays = folder / f"latents-{digest}.npz"
    with store.atomic_file(arrays) as file:
        file.write(buffer.getvalue())
    body = {
        "format": _FORMAT,
        "encoder": latents.encoder.name,
        "arguments": latents.arguments,
        "arrays": digest,
        "clusters": [{"name": s.name, "wanted": s.wanted, "texts": s.texts} for s in sets],
    }
    with store.atomic_file(folder / "latents.json") as file:
        file.write(json.dumps(body, indent=1).encode())
    for old in folder.glob("latents-*.npz"):
        if old != arrays:
            old.unlink()


def load(folder: str | Path, encoder: Encoder | None = None) -> Latents:
    """Read what `save` wrote.

    Args:
        folder: Where.
        encoder: The one they were fitted with; without, `make_encoder` makes it from its name.

    Raises:
        ConfigError: There are none, they are damaged, or they were fitted with another encoder.
        MissingDependency: The encoder needs a package that is not installed.
    """
    folder = Path(folder)
    try:
        body: dict[str, Any] = json.loads((folder / "latents.json").read_bytes())
        if body["format"] != _FORMAT:
            raise ValueError(f"format {body['format']!r}, not {_FORMAT}")
        name, arguments = str(body["encoder"]), bool(body["arguments"])
        data = (folder / f"latents-{body['arrays']}.npz").read_bytes()
        if hashlib.sha256(data).hexdigest() != body["arrays"]:
            raise ValueError("the arrays are not those that were written")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            sets = [_clusters(one, {a: arrays[f"{a}_{i}"] for a in _ARRAYS}) for i, one in enumerate(body["clusters"])]
        texts = {text for one in sets[:-1] for text in one.texts}
        if texts != set(sets[-1].texts):
            raise ValueError("the speeches of the roles are not those of the public codes")
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder} holds no latents, or damaged ones ({reason}): fit them again") from error
    if encoder is not None and encoder.name != name:
        raise ConfigError(f"the latents in {folder} were fitted with the encoder {name}, not {encoder.name}")
    return Latents(encoder or make_encoder(name), sets[:-1], sets[-1], arguments)


def _clusters(one: dict[str, Any], arrays: dict[str, np.ndarray]) -> Clusters:
    texts = tuple(one["texts"])
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a speech that is no text")
    said = {len(texts), *(len(arrays[name]) for name in ("weights", "labels", "distances"))}
    if len(said) != 1 or len(arrays["stances"]) != len(arrays["centroids"]):
        raise ValueError(f"{one['name']}: texts and arrays are of different lengths")
    return Clusters(str(one["name"]), int(one["wanted"]), texts=texts, **arrays)
