"""What questions are made of: countries with their attributes and neighbours, and what lies or was discovered there.

The facts of the corpus ``world`` are read from packages by `agentgym.envs.search_packages` and lie beside its index.
Those of the corpus ``tiny`` are in ``search_tiny.tsv``, a part of the same: real entries, few and short.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentgym.envs.retrieval import Document

from agentgym.errors import ConfigError, MissingDependency

TINY = "tiny"
COMMAND = "python -m agentgym.envs.search_corpus"
FACTS = "facts.json"
"""File beside an index."""

ATTRIBUTES = {
    "capital": "the capital of {}",
    "currency": "the currency code of {}",
    "internet code": "the internet country code of {}",
    "adjective": "the adjective of nationality of {}",
    "highest point": "the highest point of {}",
    "aircraft prefix": "the prefix of aircraft registered in {}",
    "independence": "the year of independence of {}",
    "anthem": "the national anthem of {}",
}
"""What is known of a country, in words."""


@dataclass(frozen=True)
class Country:
    """A country.

    Attributes:
        names: How it is called, the usual name first.
        values: A key of `ATTRIBUTES` to the right answers, the best first.
        border: The usual name of the country with which its land border is longest, or None.
    """

    names: tuple[str, ...]
    values: dict[str, tuple[str, ...]]
    border: str | None = None


@dataclass(frozen=True)
class Start:
    """What a question begins with.

    Attributes:
        kind: ``airport``, ``city`` or ``element``.
        name: Its name, which no other of its kind has.
        country: The usual name of the country where it lies, or was discovered.
    """

    kind: str
    name: str
    country: str


@dataclass(frozen=True)
class Facts:
    """All of it.

    Attributes:
        countries: By their usual name.
        starts: In a fixed order.
    """

    countries: dict[str, Country] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def load(path: Path) -> Facts:
    """Read what `Facts.dump` gave.

    Raises:
        MissingDependency: The index was not built.
        ConfigError: The corpus has no facts, or the file is broken.
    """
    if not path.parent.is_dir():
        raise MissingDependency(f"the search index {path.parent} is not here: build it with '{COMMAND}'")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        countries = {
            name: Country(tuple(c["names"]), {k: tuple(v) for k, v in c["values"].items()}, c["border"])
            for name, c in read["countries"].items()
        }
        return Facts(countries, tuple(Start(**start) for start in read["starts"]))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there are no questions to the corpus {path.parent.name}: give the environment a file of questions"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is broken ({error!r}): build the index again") from error


@functools.cache
def tiny() -> Facts:
    """The facts of the corpus ``tiny``."""
    countries, starts = {}, []
    with open(Path(__file__).with_name("search_tiny.tsv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t"):
            name = row["country"]
            values: dict[str, tuple[str, ...]] = {key: (row[key],) for key in ATTRIBUTES if row.get(key)}
            countries[name] = Country((name,), values, row["border"] or None)
            for kind, column in (("airport", "airports"), ("city", "cities")):
                starts += [Start(kind, start, name) for start in row[column].split()]
    return Facts(countries, tuple(starts))


def tiny_documents() -> Iterator[Document]:
    """The corpus ``tiny``: a sentence for each fact."""
    facts = tiny()
    for name, country in facts.countries.items():
        for key, said in ATTRIBUTES.items():
            if key in country.values:
                yield _tiny(name, key, f"T{said.format(name)[1:]} is {country.values[key][0]}.")
        if country.border:
            yield _tiny(name, "border", f"The longest border of {name} is with {country.border}.")
    for start in facts.starts:
        yield _tiny(start.name, start.kind, f"The {start.kind} {start.name} is in {start.country}.")


def _tiny(title: str, place: str, text: str) -> Document:
    return Document(title, f"tiny:{title}#{place.replace(' ', '-')}", text)


def as_dict(value: Any) -> dict[str, Any]:
    """An object of JSON, or an empty one."""
    return value if isinstance(value, dict) else {}
