"""Configurations are nested dataclasses; YAML files and ``key=value`` settings are laid over their defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agentgym.errors import ConfigError, unknown

T = TypeVar("T")


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
    return cls(**{k: _convert(hints[k], v, f"{where}{k}") for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected settings (key: value), got {value!r}")
        return build(typing.cast(type, kind), value, f"{where}.")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in args:
            raise unknown(f"value of {where}", str(value), [str(a) for a in args])
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return dict(value)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return origin(_convert(args[0], v, where) for v in value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def load(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: If it cannot be read or does not hold a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: expected settings (key: value) at the top level")
    return data or {}


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
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: the value is not valid YAML") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        out = overlay(out, value)
    return out


def dump(config: Any) -> str:
    """Write a config dataclass as YAML; `build` on it gives the same config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
