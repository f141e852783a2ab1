"""Search engines behind one interface: what they find, how they fail, and how one is chosen by name.

==============================  ==============================================================================
`open_retriever` with           opens
==============================  ==============================================================================
``local``                       `agentgym.envs.retrieval_index.LocalIndex`: tantivy, or SQLite's FTS5
``http://…``, ``https://…``     `agentgym.envs.retrieval_http.WikipediaRetriever`: a server as Search-R1 has it
``serper``                      `agentgym.envs.retrieval_http.SerperRetriever`: Google through serper.dev
==============================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agentgym.errors import ConfigError, EnvError, unknown


@dataclass(frozen=True)
class Document:
    """What a search finds.

    Attributes:
        title: Title of the page.
        url: Address; what follows ``#`` is the place on the page. Empty where the engine has none.
        text: The passage.
    """

    title: str
    url: str
    text: str


def read_passage(row: Mapping[str, Any]) -> Document:
    """Read a passage with ``title``, ``text`` and ``url``, or with ``contents``: a line with the title, then the text.

    Raises:
        LookupError: If it has neither text.
        AttributeError: If it is no object, or its contents are no text.
    """
    title, text = row.get("title"), row.get("text")
    if text is None:
        first, _, text = row["contents"].partition("\n")
        title = title or first.strip().strip('"')
    return Document(str(title or ""), str(row.get("url") or ""), str(text))


class SearchError(EnvError):
    """The search engine failed: it cannot be reached, or it answers nonsense. Never an empty list instead."""


class SearchTimeout(SearchError):
    """The search engine did not answer in time."""


class Retriever(Protocol):
    """A search engine."""

    def search(self, query: str, k: int = 5) -> list[Document]:
        """Find passages, best first.

        Args:
            query: Words; nothing in them is an operator.
            k: At most so many, at least 1.

        Returns:
            0 to k documents; none if nothing matches.

        Raises:
            SearchError: If the engine failed; a `SearchTimeout` if it was too slow.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. Safe to call again."""
        ...


class Pages(Protocol):
    """A store of whole pages."""

    def page(self, url: str) -> Document | None:
        """The whole page at an address, or None if there is none.

        Args:
            url: Address; what follows ``#`` does not matter.

        Raises:
            SearchError: If the store failed.
        """
        ...


def open_retriever(name: str, corpus: str = "world", timeout: float = 10.0) -> Retriever:
    """Open a search engine.

    Args:
        name: See the table above.
        corpus: For ``local``: the name of a corpus, ``tiny`` among them, which needs no index.
        timeout: For the others: seconds that a search may take.

    Raises:
        ConfigError: There is no such engine, its key is not set, or its index is broken.
        MissingDependency: The index was not built.
    """
    if not 0 < timeout <= 3600:
        raise ConfigError(f"timeout is {timeout}: a search may take more than 0 and at most 3600 seconds")
    if name == "local":
        from agentgym.envs.retrieval_index import open_corpus

        return open_corpus(corpus)
    from agentgym.envs.retrieval_http import SerperRetriever, WikipediaRetriever

    if name == "serper":
        return SerperRetriever(timeout=timeout)
    if name.startswith(("http://", "https://")):
        return WikipediaRetriever(name, timeout=timeout)
    raise unknown("retriever", name, ["local", "serper", "http://HOST:PORT/retrieve"])
