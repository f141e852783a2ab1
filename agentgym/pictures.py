"""Images of observations: stored once under a hash of their content, named in text by a marker.

An environment that shows its screen gives ``{"text": str, "image": uint8 [H, W, 3]}``. Of the image a message holds a
marker, ``<|image:HASH:HEIGHTxWIDTH|>``; the pixels lie in ``Trajectory.pictures`` under the hash. Messages stay text,
so contexts and codecs need not know of images, and two observations are equal if their texts are. Text from outside
cannot hold a marker: ``Renderer.escape`` breaks it up.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agentgym.errors import ConfigError, EnvError, missing

MOST_PIXELS = 4096 * 2304
"""The largest image that an environment may show."""
START = "<|image:"
"""What a marker begins with."""
_MARKER = re.compile(r"<\|image:([0-9a-f]{32}):([1-9]\d{0,4})x([1-9]\d{0,4})\|>")
_LIVE: weakref.WeakValueDictionary[str, Picture] = weakref.WeakValueDictionary()


class Ref(NamedTuple):
    """An image as a marker names it.

    Attributes:
        hash: First 32 digits of the SHA-256 of its size and pixels.
        height: Pixels.
        width: Pixels.
    """

    hash: str
    height: int
    width: int

    @property
    def marker(self) -> str:
        """The text that stands for it."""
        return f"{START}{self.hash}:{self.height}x{self.width}|>"


class Picture:
    """An RGB image, kept as PNG, in memory or in a file. Images of equal content are one object.

    Attributes:
        hash: What it is stored under.
    """

    def __init__(self, hash_: str, source: bytes | Path):
        """Name an image; a file is read when it is needed, and checked then."""
        self.hash, self._source = hash_, source

    @classmethod
    def of(cls, pixels: Any) -> Picture:
        """Keep pixels.

        Args:
            pixels: ``[H, W, 3]``, uint8.

        Raises:
            EnvError: If they are anything else.
            ConfigError: If there are too many of them.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise EnvError(f"the image of an observation must be a uint8 array [H, W, 3], but this is {kind}")
        height, width = pixels.shape[:2]
        if not height or not width:
            raise EnvError("the image of an observation is empty")
        if height * width > MOST_PIXELS:
            raise ConfigError(
                f"the image of an observation has {width} x {height} pixels, more than {MOST_PIXELS}: make the "
                "environment's screen smaller"
            )
        name = _hash(pixels)
        if (known := _LIVE.get(name)) is None:
            known = _LIVE[name] = cls(name, _encode(pixels))
        return known

    @property
    def png(self) -> bytes:
        """The image as PNG.

        Raises:
            ConfigError: If its file is gone.
        """
        if isinstance(self._source, Path):
            try:
                return self._source.read_bytes()
            except OSError as error:
                raise ConfigError(f"an image of the trajectories is gone: {error}: restore it") from error
        return self._source

    @property
    def pixels(self) -> np.ndarray:
        """``[H, W, 3]``, uint8.

        Raises:
            ConfigError: If its file is gone or damaged.
        """
        try:
            with _pil().open(io.BytesIO(self.png)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError(f"the image {self._where} is damaged ({error}): restore it") from error
        if _hash(pixels) != self.hash:
            raise ConfigError(f"the image {self._where} is another one than its name says: restore it")
        return pixels

    @property
    def _where(self) -> str:
        return str(self._source) if isinstance(self._source, Path) else self.hash

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    def __repr__(self) -> str:
        return f"Picture({self.hash})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and other.hash == self.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return Picture, (self.hash, self._source)


class Sight(NamedTuple):
    """An observation with an image."""

    text: str
    picture: Picture
    ref: Ref


def observed(observation: Any) -> str | Sight:
    """What an environment gave: text as it is, or parts ``text`` and ``image``.

    Raises:
        EnvError: If it is neither.
        ConfigError: If the image is too large.
    """
    if isinstance(observation, str):
        return observation
    if not isinstance(observation, dict):
        raise EnvError(f"an observation must be text, but this is {type(observation).__name__}")
    if not {"text"} <= observation.keys() <= {"text", "image"} or not isinstance(observation["text"], str):
        raise EnvError(f"an observation of parts must hold a text and an image, but this holds {list(observation)}")
    text, pixels = observation["text"], observation.get("image")
    if pixels is None:
        return text
    picture = Picture.of(pixels)
    return Sight(text, picture, Ref(picture.hash, *pixels.shape[:2]))


def seen(observation: str | Sight) -> str:
    """An observation as one text: the marker of its image, then what it says."""
    if isinstance(observation, str):
        return observation
    return observation.ref.marker + observation.text


def split(text: str) -> Iterator[str | Ref]:
    """The texts and images of a text with markers, in order; texts are never empty."""
    at = 0
    if START in text:
        for match in _MARKER.finditer(text):
            if match.start() > at:
                yield text[at : match.start()]
            yield Ref(match[1], int(match[2]), int(match[3]))
            at = match.end()
    if at < len(text):
        yield text[at:]


def escape(text: str) -> str:
    """Break up markers in text from outside."""
    return text.replace(START, f"{START[0]} {START[1:]}") if START in text else text


def without(text: str) -> str:
    """Text without its markers."""
    return "".join(part for part in split(text) if isinstance(part, str))


def in_folder(folder: Path, names: list[str]) -> dict[str, Picture]:
    """The images of a stored trajectory.

    Raises:
        ConfigError: If one is not there.
    """
    found = {}
    for name in names:
        path = folder / f"{name}.png"
        if not re.fullmatch("[0-9a-f]{32}", name) or not path.is_file():
            raise ConfigError(f"{path}: an image of the trajectories is not there: restore the folder {folder}")
        found[name] = _LIVE.get(name) or Picture(name, path)
    return found


def from_text(encoded: Mapping[str, str | Picture]) -> dict[str, Picture]:
    """Images by hash, out of the base64 of their PNG."""
    return {k: v if isinstance(v, Picture) else Picture(k, base64.b64decode(v)) for k, v in encoded.items()}


def to_text(pictures: Mapping[str, Picture]) -> dict[str, str]:
    """The base64 of the PNG of each image."""
    return {name: base64.b64encode(picture.png).decode() for name, picture in pictures.items()}


def _hash(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:32]


def _encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    _pil().fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _pil() -> Any:
    try:
        import PIL.Image
    except ModuleNotFoundError:
        raise missing("pillow", "gui") from None
    return PIL.Image
