"""Local search: queries a second of tantivy and SQLite's FTS5 on the corpus world, beside bm25s and rank_bm25.

    make bench-search

All four index the same passages in this process and answer the same queries, five passages each: the expert's searches
and the questions themselves. Peers are given words in lower case without stop-words; ours also weigh titles, stem, and
fold accents. The goal is 500 queries a second with tantivy. How often an engine's first passage is tantivy's, and how
often one of its five holds what the expert looked for, shows that no side does less.
"""

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from agentgym.envs.retrieval import Document
from agentgym.envs.retrieval_index import ENGINES, LocalIndex, build_index, words
from agentgym.envs.search_packages import Packages
from agentgym.envs.search_questions import Generator

ROOT = Path(__file__).resolve().parents[1]
Search = Callable[[str], list[Document]]


def queries(packages: Packages, number: int) -> list[tuple[str, str | None]]:
    """Searches of the expert with what each is for, and questions, in turns."""
    rng, generator, found = np.random.default_rng(0), Generator(packages.facts()), []
    while len(found) < number:
        question = generator.draw(rng, "train", int(rng.integers(2, 5)))
        thoughts = [step.thought for step in question.plan[1:]] + [question.conclusion]
        known = [re.sub(r"^It is (with )?|\. I look.*$|\.$", "", thought) for thought in thoughts]
        found += [(step.query, fact) for step, fact in zip(question.plan, known, strict=True)]
        found.append((question.text, None))
    return found[:number]


def peer(name: str, documents: list[Document]) -> Search:
    """A search with another library."""
    tokens = [words_of(f"{d.title} {d.text}") for d in documents]
    if name == "bm25s":
        import bm25s

        index = bm25s.BM25()
        index.index(tokens, show_progress=False)

        def search(query: str) -> list[Document]:
            found, _ = index.retrieve([words_of(query)], k=5, show_progress=False)
            return [documents[int(i)] for i in found[0]]

        return search
    from rank_bm25 import BM25Okapi

    ranked = BM25Okapi(tokens)
    return lambda query: ranked.get_top_n(words_of(query), documents, n=5)


def words_of(text: str) -> list[str]:
    """Words as often as they come, without stop-words."""
    kept = set(words(text)) if len(text) < 100 else None
    found = re.findall(r"\w+", text.casefold())
    return [word for word in found if kept is None or word in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000, help="for tantivy; the slower ones get a part of them")
    args = parser.parse_args()
    sys.path += map(str, (ROOT / ".venv-peers").glob("lib/python*/site-packages"))
    packages = Packages()
    documents = list(packages.documents())
    asked = queries(packages, args.queries)
    print(f"{len(documents)} passages, load {os.getloadavg()[0]:.1f}")
    print(f"{'':10} {'index s':>8} {'queries':>8} {'q/s wall':>9} {'q/s CPU':>9} {'top-1 as tantivy':>17} {'found':>6}")
    first: list[str] = []
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("tantivy", 1), ("fts5", 5), ("bm25s", 10), ("rank_bm25", 50)):
            started = time.perf_counter()
            if name in ENGINES:
                build_index(iter(documents), Path(folder) / name, name)
                search: Search = LocalIndex(Path(folder) / name).search
            else:
                try:
                    search = peer(name, documents)
                except ImportError:
                    print(f"{name:10} not installed: make bench-search")
                    continue
            indexed = time.perf_counter() - started
            rates[name] = measure(name, search, asked[: max(len(asked) // part, 1)], indexed, first)
    for other in rates.keys() - {"tantivy"}:
        print(f"tantivy / {other}: {rates['tantivy'] / rates[other]:.0f}x")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, all of them together")


def measure(name: str, search: Search, asked: list[tuple[str, Any]], indexed: float, first: list[str]) -> float:
    """Ask, and print a line; ``first`` holds the addresses that tantivy found first. Returns queries a second."""
    search(asked[0][0])
    clocks = time.perf_counter(), time.process_time()
    found = [search(query) for query, _ in asked]
    wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    top = [documents[0].url if documents else "" for documents in found]
    if name == "tantivy":
        first += top
    same = np.mean([one == other for one, other in zip(top, first, strict=False)])
    right = [
        any(fact.casefold() in document.text.casefold() for document in documents)
        for (_, fact), documents in zip(asked, found, strict=True)
        if fact
    ]
    count = len(asked)
    speed = f"{count:8d} {count / wall:9.0f} {count / cpu:9.0f}"
    print(f"{name:10} {indexed:8.1f} {speed} {same:17.2f} {np.mean(right):6.2f}", flush=True)
    return count / wall


if __name__ == "__main__":
    main()
