"""Configurations are nested dataclasses; YAML files and ``key=value`` settings are laid over their defaults."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agentgym.errors import ConfigError, unknown

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML, but a key that stands twice is an error and nothing may contain itself."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.deep_construct = True

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a config dataclass from nested mappings.

    Args:
        cls: A dataclass.
        values: Keys are its fields; what is missing keeps its default.
        where: Path of this level, for error messages.

    Raises:
        ConfigError: For an unknown key or a value of the wrong type, naming its path.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    for key in values:
        if key not in names:
            raise unknown("config key", f"{where}{key}", [f"{where}{n}" for n in names])
    for f in dataclasses.fields(typing.cast(Any, cls)):
        if f.name in names - set(values) and f.default is f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}{f.name} is missing")
    return cls(**{k: _convert(hints[k], v, f"{where}{k}") for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(where, "settings (key: value)", value)
        return build(typing.cast(type, kind), value, f"{where}.")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        for kind in kinds[:-1]:
            with contextlib.suppress(ConfigError):
                return _convert(kind, value, where)
        return _convert(kinds[-1], value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise unknown(f"value of {where}", _short(value).strip("'"), [str(a) for a in args])
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, "a mapping", value)
        return {_convert(args[0], k, f"key of {where}"): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _wrong(where, "a list", value)
        return origin(_convert(args[0], v, where) for v in value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    unfit = (kind in (int, float) and isinstance(value, bool)) or (isinstance(value, float) and math.isnan(value))
    if unfit or not isinstance(value, kind):
        raise _wrong(where, kind.__name__, value)
    return value


def _wrong(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, got {_short(value)}")


def _short(value: Any) -> str:
    abridged = reprlib.Repr()
    abridged.maxlevel = 2
    text = abridged.repr(value)
    return text if len(text) < 100 else f"{text[:100]}..."


def load(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: If it cannot be read or does not hold a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    data = _yaml(text, str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: expected settings (key: value) at the top level")
    return data or {}


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where} is not valid YAML: {line}{error.problem}") from error
    except Exception as error:  # a date without a month, a number of 5000 digits: PyYAML lets through what Python says
        reason = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(f"{where} is not valid YAML: {reason[0]}") from error


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``top`` over ``base``: mappings merge, anything else is replaced."""
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        out[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``a.b=value`` settings into nested mappings; values are read as YAML.

    Raises:
        ConfigError: For a setting without ``=`` or with a value that is not YAML.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair}: write key=value, for example --set optim.lr=1e-4")
        value = _yaml(text, f"--set {key}: the value")
        for part in reversed(key.split(".")):
            value = {part: value}
        out = overlay(out, value)
    return out


def dump(config: Any) -> str:
    """Write a config dataclass as YAML; `build` on it gives the same config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
