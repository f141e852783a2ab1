"""Questions of several hops, made from facts: a place or an element, its country, that one's neighbour, an attribute.

A question of ``hops`` hops needs as many look-ups. Its beginning decides its split, so that train, dev and test share
no airport, city or element.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from agentgym.envs.retrieval_index import corpus_folder
from agentgym.envs.search_facts import ATTRIBUTES, FACTS, TINY, Facts, Start, load, tiny

from agentgym.errors import ConfigError

SPLITS = ("train", "dev", "test")
HOPS = (1, 2, 3, 4)

_COUNTRY = {
    "airport": "the country in which the airport {} lies",
    "city": "the country in which the city of {} lies",
    "element": "the country in which {} was discovered",
}
_WHERE = {
    "airport": "In which country does the airport {} lie?",
    "city": "In which country does the city of {} lie?",
    "element": "In which country was {} discovered?",
}
_CHAINS = {
    2: "{what} {where}?",
    3: "The longest land border of {where} is with another country. {what} that other country?",
    4: "The longest land border of {where} is with a second country, and the longest of that one is with a third. "
    "{what} the third country?",
}
"""Questions by the number of hops."""
_WHAT = {
    "capital": "What is the capital of",
    "currency": "What is the three-letter code of the currency of",
    "internet code": "What is the internet country code of",
    "adjective": "What is the adjective of nationality of",
    "highest point": "What is the highest point of",
    "aircraft prefix": "What is the prefix of civil aircraft registered in",
    "independence": "What is the year of independence of",
    "anthem": "What is the title of the national anthem of",
}
_QUERIES = {
    "airport": "{} airport",
    "city": "{} city",
    "element": "{} discovered",
    "border": "{} land boundaries longest border",
    "capital": "{} capital",
    "currency": "{} exchange rates currency",
    "internet code": "{} internet country code",
    "adjective": "{} nationality adjective",
    "highest point": "{} elevation highest point",
    "aircraft prefix": "{} civil aircraft registration prefix",
    "independence": "{} independence",
    "anthem": "{} national anthem",
}


@dataclass(frozen=True)
class Lookup:
    """A search of the expert.

    Attributes:
        thought: Why.
        query: What it looks for.
    """

    thought: str
    query: str


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        id: Which it is.
        text: What is asked.
        answers: What is right, the best first; at least one.
        hops: How many look-ups it needs; 0 if that is not known.
        plan: The searches of an expert.
        conclusion: The expert's thought before the answer.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    hops: int = 0
    plan: tuple[Lookup, ...] = ()
    conclusion: str = ""


def split_of(name: str) -> str:
    """The split of a question whose beginning, or id, has this name: eight in ten are for training."""
    return {8: "dev", 9: "test"}.get(int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10, "train")


class Generator:
    """Makes questions from facts."""

    def __init__(self, facts: Facts):
        """Take the facts."""
        self._facts = facts
        self._pools: dict[tuple[str, int], dict[str, dict[str, list[tuple[Start, tuple[str, ...]]]]]] = {}

    def draw(self, rng: np.random.Generator, split: str, hops: int) -> Question:
        """Draw a question: the kind of its beginning, then the country, the beginning and the attribute.

        Raises:
            ConfigError: The facts have no such question.
        """
        pool = self._pool(split, hops)
        kind = list(pool)[int(rng.integers(len(pool)))]
        countries = list(pool[kind])
        starts = pool[kind][countries[int(rng.integers(len(countries)))]]
        start, chain = starts[int(rng.integers(len(starts)))]
        keys = self._attributes(chain, hops)
        return self._question(start, chain, keys[int(rng.integers(len(keys)))])

    def every(self, split: str, hops: int) -> Iterator[Question]:
        """All questions of a split and a number of hops."""
        for countries in self._pool(split, hops).values():
            for starts in countries.values():
                for start, chain in starts:
                    for key in self._attributes(chain, hops):
                        yield self._question(start, chain, key)

    def _pool(self, split: str, hops: int) -> dict[str, dict[str, list[tuple[Start, tuple[str, ...]]]]]:
        """Kind to country to beginnings, each with the countries that are gone through."""
        if (split, hops) not in self._pools:
            pool: dict[str, dict[str, list[tuple[Start, tuple[str, ...]]]]] = {}
            for start in self._facts.starts:
                chain = self._chain(start.country, max(hops - 1, 1))
                if split_of(f"{start.kind} {start.name}") == split and chain and self._attributes(chain, hops):
                    pool.setdefault(start.kind, {}).setdefault(start.country, []).append((start, chain))
            if not pool:
                raise ConfigError(f"the corpus has no questions of split {split!r} with {hops} hops")
            self._pools[split, hops] = pool
        return self._pools[split, hops]

    def _chain(self, country: str, length: int) -> tuple[str, ...] | None:
        """A country, its neighbour with the longest border, that one's, ...; None if one comes twice or has none."""
        chain = [country]
        while len(chain) < length:
            border = self._facts.countries[chain[-1]].border
            if border is None or border in chain:
                return None
            chain.append(border)
        return tuple(chain)

    def _attributes(self, chain: tuple[str, ...], hops: int) -> list[str]:
        if hops == 1:
            return ["country"]
        return [key for key in ATTRIBUTES if key in self._facts.countries[chain[-1]].values]

    def _question(self, start: Start, chain: tuple[str, ...], key: str) -> Question:
        where = _COUNTRY[start.kind].format(start.name)
        plan = [Lookup(f"I look for {where}.", _QUERIES[start.kind].format(start.name))]
        known = f"It is {chain[0]}."
        for country, neighbour in itertools.pairwise(chain):
            plan.append(Lookup(f"{known} I look for its longest border.", _QUERIES["border"].format(country)))
            known = f"It is with {neighbour}."
        last = self._facts.countries[chain[-1]]
        if key == "country":
            text, answers = _WHERE[start.kind].format(start.name), last.names
        else:
            plan.append(Lookup(f"{known} I look for the {key}.", _QUERIES[key].format(chain[-1])))
            text, answers = _CHAINS[len(plan)].format(what=_WHAT[key], where=where), last.values[key]
            known = f"It is {answers[0]}."
        name = "/".join((start.kind, start.name, *chain[1:], key))
        return Question(name, text, _with_plain(answers), len(plan), tuple(plan), known)


def generator_of(corpus: str) -> Generator:
    """The questions of a local corpus, shared by all environments of a process.

    Raises:
        MissingDependency: Its index was not built.
        ConfigError: It has no facts, or they are broken.
    """
    path = None if corpus == TINY else corpus_folder(corpus) / FACTS
    return _shared(path, path.stat().st_mtime_ns if path and path.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _shared(path: Path | None, changed: int) -> Generator:
    return Generator(load(path) if path else tiny())


@functools.lru_cache(maxsize=4096)
def _with_plain(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, and those without accents."""
    plain = ("".join(c for c in unicodedata.normalize("NFKD", n) if not unicodedata.combining(c)) for n in names)
    return tuple(dict.fromkeys((*names, *plain)))
