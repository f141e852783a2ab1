"""TFRecords and protocol buffers in plain Python, as far as AndroidControl needs them.

A TFRecord file is a row of records: the length (8 bytes), its checksum (4), the data, their checksum (4), all little
endian. The checksum is CRC32C, rotated right by 15 bits plus 0xa282ead8. The file may be compressed with gzip; offsets
are those in the data without the compression.
"""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from agentgym.errors import ConfigError

Value = int | memoryview
"""Of a field of a message: a number, or bytes."""
Feature = list[bytes] | list[float] | list[int]

_POLYNOMIAL = 0x82F63B78
_LANES = 8192
_LONGEST = 1 << 31


class RecordError(ConfigError):
    """A file of records that cannot be read on.

    Attributes:
        path: The file.
        offset: Where the record begins, in bytes, in the data without compression.
    """

    def __init__(self, path: Path, offset: int, what: str):
        super().__init__(f"{path}, record at byte {offset}: {what}")
        self.path, self.offset = path, offset


class WireError(ValueError):
    """Bytes that are no protocol buffer."""


def read_records(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Read a TFRecord file, compressed or not, one record at a time.

    Yields:
        Offset and data of each record.

    Raises:
        RecordError: The file ends in the middle of a record, or a checksum is wrong.
        ConfigError: It cannot be opened.
    """
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield from _records(path, gzip.GzipFile(fileobj=raw) if packed else raw)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _records(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[int, bytes]]:
    offset = 0

    def take(count: int, what: str) -> bytes:
        parts, there = [], 0
        try:
            while there < count and (part := file.read(min(count - there, 1 << 20))):
                parts.append(part)
                there += len(part)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RecordError(path, offset, f"the gzip data are broken or end too early: {error}") from error
        if there < count and (there or what != "length"):
            raise RecordError(path, offset, f"the file ends within the {what}: {there} of {count} bytes are there")
        return b"".join(parts)

    while head := take(12, "length"):
        length, check = struct.unpack("<QI", head)
        if masked_crc32c(head[:8]) != check:
            raise RecordError(path, offset, "the checksum of the length is wrong: the file is corrupt, or no TFRecord")
        if length > _LONGEST:
            raise RecordError(path, offset, f"a record of {length} bytes is too long")
        data = take(length, "data")
        if masked_crc32c(data) != struct.unpack("<I", take(4, "checksum"))[0]:
            raise RecordError(path, offset, "the checksum of the data is wrong: the file is corrupt")
        yield offset, data
        offset += 16 + length


def write_records(path: str | Path, records: Iterable[bytes]) -> None:
    """Write a TFRecord file compressed with gzip; the same records give the same bytes."""
    with open(path, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file:
        for data in records:
            head = struct.pack("<Q", len(data))
            file.write(head + struct.pack("<I", masked_crc32c(head)))
            file.write(data + struct.pack("<I", masked_crc32c(data)))


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC32C (Castagnoli): long data in `_LANES` lanes of equal length at once, whose remainders are then joined."""
    table = _table()
    if len(data) < 4 * _LANES:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(table[(crc ^ byte) & 0xFF]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    # Zeros in front leave a remainder of 0 as it is, and the start value 0xffffffff is the same as inverting 4 bytes.
    padded = np.zeros(-(-len(data) // _LANES) * _LANES, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    columns = np.ascontiguousarray(padded.reshape(_LANES, -1).T)  # [bytes of a lane, lanes]
    crcs = np.zeros(_LANES, np.uint32)
    for column in columns:
        crcs = table[(crcs ^ column) & 0xFF] ^ crcs >> 8
    zeros = _appended(len(columns))
    while len(crcs) > 1:
        crcs = _apply(zeros, crcs[::2]) ^ crcs[1::2]
        zeros = _apply(zeros, zeros)
    return int(crcs[0]) ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    """What each byte does to a remainder of 0: uint32 of shape ``[256]``."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * np.uint32(_POLYNOMIAL)
    return table


def _apply(operator: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A linear map of remainders, given as the images of the 32 single bits, on uint32 values."""
    chosen = values[:, None] >> np.arange(32, dtype=np.uint32) & 1
    return np.bitwise_xor.reduce(chosen * operator, axis=1)


@functools.lru_cache(maxsize=256)
def _appended(count: int) -> np.ndarray:
    """What ``count`` zero bytes behind the data do to a remainder, as the images of the 32 single bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power, result = _table()[bits & 0xFF] ^ bits >> 8, bits
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def fields(message: bytes | memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of a message in their order: number, and value (numbers as unsigned, all else as bytes).

    Raises:
        WireError: It is no message.
    """
    data, place = memoryview(message), 0
    while place < len(data):
        key, place = _varint(data, place)
        kind, size = key & 7, 0
        if kind == 0:
            number, place = _varint(data, place)
            yield key >> 3, number
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise WireError(f"field {key >> 3} has the unknown wire type {kind}")
        if place + size > len(data):
            raise WireError(f"field {key >> 3} is longer than its message")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise WireError("a number does not end")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place


def signed(value: Value) -> int:
    """A number field as a signed integer."""
    if isinstance(value, memoryview):
        raise WireError("bytes stand where a number should")
    return value - (1 << 64) if value >> 63 else value


def numbers(value: Value) -> list[int]:
    """The integers of a repeated field, packed or not."""
    if isinstance(value, int):
        return [signed(value)]
    found, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        found.append(signed(number))
    return found


def blob(value: Value) -> bytes:
    """A field of bytes."""
    if isinstance(value, int):
        raise WireError("a number stands where bytes should")
    return bytes(value)


def text(value: Value) -> str:
    """A field of text."""
    return blob(value).decode(errors="replace")


def field(number: int, value: int | bytes | str) -> bytes:
    """A field as bytes of a message: a number as varint, text and bytes with their length."""
    if isinstance(value, int):
        return _key(number, 0) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _key(number, 2) + _number(len(data)) + data


def packed(number: int, values: Iterable[int]) -> bytes:
    """A packed repeated field of integers."""
    return field(number, b"".join(map(_number, values)))


def _key(number: int, kind: int) -> bytes:
    return _number(number << 3 | kind)


def _number(value: int) -> bytes:
    value, written = value & 0xFFFFFFFFFFFFFFFF, bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def read_example(data: bytes) -> dict[str, Feature]:
    """The features of a ``tf.train.Example``.

    Raises:
        WireError: It is none.
    """
    found: dict[str, Feature] = {}
    for _, features in fields(data):
        for _, entry in fields(blob(features)):
            parts = dict(fields(blob(entry)))
            found[text(parts.get(1, memoryview(b"")))] = _feature(blob(parts.get(2, memoryview(b""))))
    return found


def _feature(data: bytes) -> Feature:
    for kind, values in fields(data):
        if kind == 1:
            return [blob(value) for _, value in fields(blob(values))]
        if kind == 2:
            return [float(x) for _, value in fields(blob(values)) for x in np.frombuffer(blob(value), "<f4")]
        if kind == 3:
            return [number for _, value in fields(blob(values)) for number in numbers(value)]
    return []


def write_example(features: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
    """A ``tf.train.Example`` with these features: bytes, or integers."""
    entries = [field(1, field(1, name) + field(2, _written(values))) for name, values in features.items()]
    return field(1, b"".join(entries))


def _written(values: Sequence[bytes] | Sequence[int]) -> bytes:
    texts = [value for value in values if isinstance(value, bytes)]
    if texts:
        return field(1, b"".join(field(1, value) for value in texts))
    return field(3, packed(1, [value for value in values if isinstance(value, int)]))
