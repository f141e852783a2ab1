"""Search engines over HTTP: a Wikipedia retriever as Search-R1 serves it, and Google through serper.dev.

Search-R1's server takes ``{"queries": ["…"], "topk": 5, "return_scores": true}`` and gives, a list for each query,
``{"result": [[{"document": {"contents": "a line with the title, then the text"}, "score": 0.9}, …]]}``. Serper takes
``{"q": "…"}`` with the key in a header and gives ``{"organic": [{"title", "link", "snippet"}, …]}``.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from agentgym.envs.retrieval import Document, SearchError, SearchTimeout, read_passage

from agentgym.errors import ConfigError

SERPER_URL = "https://google.serper.dev/search"
SERPER_KEY = "SERPER_API_KEY"
"""Environment variable with the key."""
_SERPER_RESULTS = 10
_MOST_BYTES = 16 << 20
_TRIES, _PAUSE_S = 3, 0.5
_BUSY = (429, 502, 503)


class WikipediaRetriever:
    """A server such as Search-R1's ``retrieval_server.py``."""

    def __init__(self, url: str, timeout: float = 10.0):
        """Remember the address; nothing is sent.

        Args:
            url: Such as ``http://127.0.0.1:8000/retrieve``.
            timeout: Seconds that a search may take.
        """
        self.url, self.timeout = url, timeout

    def search(self, query: str, k: int = 5) -> list[Document]:
        """Ask the server; see `agentgym.envs.retrieval.Retriever`."""
        if not query.strip():
            return []
        asked = {"queries": [query], "topk": k, "return_scores": True}
        return _documents(self.url, lambda: _post(self.url, asked, {}, self.timeout)["result"][0], _passage, k)

    def close(self) -> None:
        """Nothing is kept open."""


class SerperRetriever:
    """Google's results through serper.dev, for the United States in English; snippets only, no pages."""

    def __init__(self, timeout: float = 10.0, url: str = SERPER_URL):
        """Read the key from ``$SERPER_API_KEY``; nothing is sent.

        Args:
            timeout: Seconds that a search may take.
            url: Another address with the same interface.

        Raises:
            ConfigError: The key is not set.
        """
        key = os.environ.get(SERPER_KEY, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(f"the retriever serper needs a key: export {SERPER_KEY}=...")
        self.url, self.timeout, self._headers = url, timeout, {"X-API-KEY": key}

    def search(self, query: str, k: int = 5) -> list[Document]:
        """Ask Google; see `agentgym.envs.retrieval.Retriever`."""
        if not query.strip():
            return []
        asked = {"q": query, "gl": "us", "hl": "en", "num": max(k, _SERPER_RESULTS)}
        return _documents(self.url, lambda: _post(self.url, asked, self._headers, self.timeout)["organic"], _organic, k)

    def close(self) -> None:
        """Nothing is kept open."""


def _passage(item: dict[str, Any]) -> Document:
    return read_passage(item.get("document", item))


def _organic(item: dict[str, Any]) -> Document:
    return Document(str(item["title"]), str(item["link"]), str(item.get("snippet") or ""))


def _documents(url: str, ask: Callable[[], Any], read: Callable[[dict[str, Any]], Document], k: int) -> list[Document]:
    try:
        items = ask()
        if not isinstance(items, list):
            raise TypeError(f"{type(items).__name__} instead of a list of results")
        return [read(item) for item in items[:k]]
    except (LookupError, TypeError, AttributeError) as error:
        raise SearchError(f"the search server {url} answers in another form: {error!r}") from error


def _post(url: str, asked: dict[str, Any], headers: dict[str, str], timeout: float) -> Any:
    """Send JSON and read JSON; a busy server is asked again as long as there is time.

    Raises:
        SearchTimeout: There is no answer in time.
        SearchError: The server cannot be reached, refuses, or gives no JSON.
    """
    end = time.monotonic() + timeout
    for attempt in range(1, _TRIES + 1):
        request = urllib.request.Request(
            url, json.dumps(asked).encode(), {"Content-Type": "application/json", **headers}, method="POST"
        )
        try:
            return json.loads(_read(request, end))
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(200).decode(errors="replace").split())
            if error.code in _BUSY and attempt < _TRIES and time.monotonic() + _PAUSE_S * attempt < end:
                time.sleep(_PAUSE_S * attempt)
                continue
            raise SearchError(f"the search server {url} answers {error.code} {error.reason}: {said}") from error
        except (TimeoutError, urllib.error.URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise SearchTimeout(f"the search server {url} did not answer in {timeout:g} s") from error
            raise SearchError(f"the search server {url} cannot be reached: {reason!r}") from error
        except (ValueError, RecursionError) as error:
            raise SearchError(f"the search server {url} does not answer in JSON: {error}") from error
    raise AssertionError


def _read(request: urllib.request.Request, end: float) -> bytes:
    """The body of an answer, which may not come in after a moment, however slowly it drips."""
    body = b""
    with urllib.request.urlopen(request, timeout=max(end - time.monotonic(), 0.001)) as response:
        while block := response.read1(1 << 16):
            body += block
            if time.monotonic() > end:
                raise TimeoutError
            if len(body) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
    return body
