"""A local index: the documents in SQLite, found by tantivy where it is installed and by SQLite's FTS5 otherwise.

An index is a folder, ``$AGENTGYM_CACHE/search/NAME``::

    documents.sqlite   the documents, and with FTS5 their index
    tantivy/           with tantivy: its index
    index.json         what is in it; written last

It is built beside its place and moved there whole, so that what was killed half-way is never opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from agentgym.envs.retrieval import Document, SearchError
from agentgym.envs.search_facts import COMMAND, TINY, tiny_documents

from agentgym.errors import ConfigError, MissingDependency, missing

try:
    import tantivy
except ImportError:
    tantivy = None

ENGINES = ("tantivy", "fts5")
_FORMAT = 1
_HEAP = 512 << 20
_ANALYZER = "agentgym"
_TITLE_WEIGHT = 5.0
_MOST_WORDS = 32
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about after all also an and any are as at be been before being between both but by can could did do does "
        "each for from had has have having he her here him his how i if in into is it its just me more most my no nor "
        "not of on only or other our out over same she should so some such than that the their them then there these "
        "they this those through to too under until up very was we were what when where which while who whom whose "
        "why will with would you your",
    )
)


def words(query: str) -> list[str]:
    """The words that are looked for: without punctuation, doubles and stop-words (unless there are no others)."""
    found = list(dict.fromkeys(re.findall(r"\w+", query.casefold())))
    return ([word for word in found if word not in _STOP_WORDS] or found)[:_MOST_WORDS]


class _Engine(Protocol):
    def find(self, query: list[str], k: int) -> list[int]:
        """The numbers of documents, best first."""
        ...


class _Fts5:
    def __init__(self, database: sqlite3.Connection):
        self._database = database

    @staticmethod
    def build(database: sqlite3.Connection) -> None:
        database.execute(
            "CREATE VIRTUAL TABLE found USING fts5(title, text, content='documents', content_rowid='id', "
            "tokenize='porter unicode61 remove_diacritics 2')"
        )
        database.execute("INSERT INTO found(found) VALUES ('rebuild')")
        database.execute("INSERT INTO found(found) VALUES ('optimize')")

    def find(self, query: list[str], k: int) -> list[int]:
        match = " OR ".join(f'"{word}"' for word in query)
        order = f"bm25(found, {_TITLE_WEIGHT}, 1.0), rowid"
        rows = self._database.execute(
            f"SELECT rowid FROM found WHERE found MATCH ? ORDER BY {order} LIMIT ?", (match, k)
        )
        return [row[0] for row in rows]


class _Tantivy:
    def __init__(self, folder: Path):
        index = tantivy.Index.open(str(folder))
        _analyse(index)
        self._index, self._searcher = index, index.searcher()

    @staticmethod
    def build(folder: Path, documents: Iterable[tuple[int, str, str]]) -> None:
        schema = tantivy.SchemaBuilder()
        schema.add_unsigned_field("id", stored=True)
        for name in ("title", "text"):
            schema.add_text_field(name, tokenizer_name=_ANALYZER, index_option="freq")
        folder.mkdir()
        index = tantivy.Index(schema.build(), path=str(folder))
        _analyse(index)
        writer = index.writer(_HEAP, 1)
        for number, title, text in documents:
            writer.add_document(tantivy.Document(id=number, title=title, text=text))
        writer.commit()
        writer.wait_merging_threads()

    @property
    def count(self) -> int:
        return int(self._searcher.num_docs)

    def find(self, query: list[str], k: int) -> list[int]:
        parsed = self._index.parse_query(" ".join(query), ["title", "text"], {"title": _TITLE_WEIGHT})
        hits = self._searcher.search(parsed, k, count=False).hits
        return [int(self._searcher.doc(address)["id"][0]) for _, address in hits]


def _analyse(index: Any) -> None:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for part in (
        tantivy.Filter.remove_long(40),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.stemmer("english"),
    ):
        builder = builder.filter(part)
    index.register_tokenizer(_ANALYZER, builder.build())


class LocalIndex:
    """An index on this machine; a `agentgym.envs.retrieval.Retriever` and a `agentgym.envs.retrieval.Pages`.

    Attributes:
        engine: ``tantivy`` or ``fts5``.
        count: Number of documents.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Open an index that was built.

        Raises:
            MissingDependency: It is not there, or was built with tantivy, which is not installed.
            ConfigError: It is broken, or of another version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingDependency(f"the search index {folder} is not here: build it with '{COMMAND}'")
        again = f"build it again with '{COMMAND} --again'"
        try:
            about = json.loads((folder / "index.json").read_bytes())
            if about["format"] != _FORMAT or about["engine"] not in ENGINES:
                raise ConfigError(f"the search index {folder} is of another version: {again}")
            self.engine, self.count = str(about["engine"]), int(about["documents"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the search index {folder} is half built or broken ({error!r}): {again}") from error
        if self.engine == "tantivy" and tantivy is None:
            raise missing("tantivy", "search")
        database = None
        try:
            uri = f"{(folder / 'documents.sqlite').resolve().as_uri()}?mode=ro&immutable=1"
            database = sqlite3.connect(uri, uri=True, check_same_thread=False)
            held = [database.execute("SELECT count(*) FROM documents").fetchone()[0]]
            engine: _Engine = _Fts5(database)
            if self.engine == "tantivy":
                engine = _Tantivy(folder / "tantivy")
                held.append(engine.count)
            if any(count != self.count for count in held):
                raise ValueError(f"{held} documents instead of {self.count}")
        except (sqlite3.Error, OSError, ValueError) as error:
            if database is not None:
                database.close()
            raise ConfigError(f"the search index {folder} is half built or broken ({error}): {again}") from error
        self._take(database, engine)

    @classmethod
    def in_memory(cls, documents: Iterable[Document]) -> LocalIndex:
        """Index a few documents in memory, with FTS5."""
        index = cls.__new__(cls)
        database = sqlite3.connect(":memory:", check_same_thread=False)
        index.engine, index.count = "fts5", _store(database, documents)
        _Fts5.build(database)
        index._take(database, _Fts5(database))
        return index

    def _take(self, database: sqlite3.Connection, engine: _Engine) -> None:
        self._database: sqlite3.Connection | None = database
        self._engine = engine
        self._lock = threading.Lock()

    def search(self, query: str, k: int = 5) -> list[Document]:
        """Find passages with any of the words, best first; see `agentgym.envs.retrieval.Retriever`."""
        if k < 1:
            raise ConfigError(f"k is {k}: a search must be for at least 1 document")
        looked_for = words(query)
        if not looked_for:
            return []
        with self._reading() as database:
            numbers = self._engine.find(looked_for, k)
            rows = (
                database.execute("SELECT title, url, text FROM documents WHERE id = ?", (number,)).fetchone()
                for number in numbers
            )
            return [Document(*row) for row in rows]

    def page(self, url: str) -> Document | None:
        """All passages of a page, in their order; see `agentgym.envs.retrieval.Pages`."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT title, text FROM documents WHERE page = ? ORDER BY id", (_clean(url).partition("#")[0],)
            ).fetchall()
        if not rows:
            return None
        titles = [title.split(": ") for title, _ in rows]
        shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*titles))]  # noqa: B905
        return Document(": ".join(shared) or rows[0][0], url.partition("#")[0], "\n\n".join(text for _, text in rows))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database is None:
                raise SearchError("the search index was closed")
            try:
                yield self._database
            except (sqlite3.Error, ValueError, OSError) as error:
                raise SearchError(f"the search index failed: {error}") from error

    def close(self) -> None:
        """Close the files. Safe to call again."""
        with self._lock:
            database, self._database = self._database, None
            self._engine = _Fts5(database) if database else self._engine
            if database is not None:
                database.close()


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()


def _store(database: sqlite3.Connection, documents: Iterable[Document]) -> int:
    """Write documents into a new database; returns how many."""
    database.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, page TEXT, url TEXT, title TEXT, text TEXT)")
    rows = ((d.url.partition("#")[0], d.url, d.title, d.text) for d in documents)
    database.executemany("INSERT INTO documents (page, url, title, text) VALUES (?, ?, ?, ?)", rows)
    database.execute("CREATE INDEX pages ON documents (page)")
    return int(database.execute("SELECT count(*) FROM documents").fetchone()[0])


def corpus_folder(name: str) -> Path:
    """``$AGENTGYM_CACHE/search/NAME``, by default below ``~/.cache/agentgym``.

    Raises:
        ConfigError: The name is not one of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name):
        raise ConfigError(f"corpus {name!r}: a name has 1 to 64 letters, digits, '.', '-' and '_'")
    return Path(os.environ.get("AGENTGYM_CACHE") or Path.home() / ".cache" / "agentgym") / "search" / name


def open_corpus(name: str) -> LocalIndex:
    """Open the index of a corpus by its name; that of ``tiny`` is made in memory.

    Raises:
        MissingDependency: It was not built.
        ConfigError: It is broken.
    """
    if name == TINY:
        return LocalIndex.in_memory(tiny_documents())
    return LocalIndex(corpus_folder(name))


def choose_engine(name: str) -> str:
    """The name of an engine; ``auto`` is tantivy where it is installed.

    Raises:
        ConfigError: There is no such engine.
        MissingDependency: tantivy is asked for and not installed.
    """
    if name == "auto":
        return "tantivy" if tantivy is not None else "fts5"
    if name not in ENGINES:
        raise ConfigError(f"unknown search engine {name!r}: choose from auto, {', '.join(ENGINES)}")
    if name == "tantivy" and tantivy is None:
        raise missing("tantivy", "search")
    return name


def build_index(
    documents: Iterable[Document], folder: Path, engine: str = "auto", files: Mapping[str, str] | None = None
) -> int:
    """Build an index, which appears whole or not at all; one that is there is replaced.

    Args:
        documents: In the order that decides between equally good ones; passages of a page follow each other.
        folder: Where.
        engine: ``tantivy``, ``fts5``, or ``auto`` (see `choose_engine`).
        files: Text of further files by name.

    Returns:
        Number of documents.

    Raises:
        ConfigError: There are no documents, or the folder cannot be written.
        MissingDependency: See `choose_engine`.
    """
    engine = choose_engine(engine)
    building, old = (folder.with_name(f".{folder.name}.{part}") for part in ("building", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in (building, old):
                shutil.rmtree(left, ignore_errors=True)
            building.mkdir()
            try:
                count = _build(documents, building, engine, files or {})
                if folder.exists():
                    folder.rename(old)
                building.rename(folder)
            finally:
                for left in (building, old):
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write the search index {folder}: {error}") from error
    return count


def _build(documents: Iterable[Document], folder: Path, engine: str, files: Mapping[str, str]) -> int:
    with contextlib.closing(sqlite3.connect(folder / "documents.sqlite")) as database:
        count = _store(database, documents)
        if not count:
            raise ConfigError("there are no documents to index")
        if engine == "fts5":
            _Fts5.build(database)
        else:
            _Tantivy.build(folder / "tantivy", database.execute("SELECT id, title, text FROM documents ORDER BY id"))
        database.commit()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    about = {"format": _FORMAT, "engine": engine, "documents": count}
    (folder / "index.json").write_text(json.dumps(about))
    return count
