"""What is said to a vLLM server: token ids go out; ids, log-probabilities and versions of weights come back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from agentgym.errors import EngineError

_UNIX = "unix:"
SCORING = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
"""What vLLM is told where given tokens are to be scored."""


class Unreachable(EngineError):
    """The server did not answer: it may be gone."""


@dataclass(frozen=True)
class Answer:
    """What was sampled for one prompt.

    Attributes:
        ids: Sampled tokens.
        logps: Their log-probabilities under the distribution that they were drawn from.
        versions: Version of the weights that sampled each.
        finish: ``stop``, ``length``, or ``abort`` where the server was told to stop in the middle.
        cached: Prompt tokens that were not computed anew.
    """

    ids: list[int]
    logps: list[float]
    versions: list[int]
    finish: str
    cached: int


class VLLMClient:
    """Speaks to one server, over the file of a socket or its address.

    Attributes:
        where: The server, for messages.
    """

    def __init__(self, url: str, key: str = "", timeout: float = 600.0):
        """Prepare; nothing is sent yet.

        Args:
            url: Address of a server, or ``unix:`` and the file of its socket.
            key: Sent as a bearer token if given.
            timeout: Seconds a request may take.
        """
        self.where, self.timeout = url, timeout
        file = url.removeprefix(_UNIX) if url.startswith(_UNIX) else None
        common: dict[str, Any] = {
            "base_url": "http://vllm" if file else url.rstrip("/"),
            "timeout": timeout,
            # no connection outlives its request: the client works in any event loop and leaves nothing open
            "headers": {"Connection": "close", **({"Authorization": f"Bearer {key}"} if key else {})},
        }
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._async = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=file, limits=limits), **common)
        self._sync = httpx.Client(transport=httpx.HTTPTransport(uds=file, limits=limits), **common)

    async def generate(
        self,
        ids: Sequence[int],
        new: int,
        stop: int,
        temperature: float,
        top_p: float,
        salt: str,
        name: str | None = None,
        features: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Sample after a prompt.

        Args:
            ids: The prompt.
            new: Most tokens to sample.
            stop: The token that ends the answer, itself the last of it.
            temperature: 0 takes the most likely token.
            top_p: Nucleus.
            salt: Cached keys and values are shared with requests of the same salt only.
            name: The adapter, None for the model alone.
            features: The images in the prompt, of `agentgym.policies.vllm_images.Images`.

        Raises:
            Unreachable: The server cannot be reached, cut the connection, or took too long.
            EngineError: It refused, or answered with something else.
        """
        body = _to_sample(ids, new, [stop], temperature, top_p, salt, name, features)
        try:
            response = await self._async.post("/inference/v1/generate", json=body)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        return self._sampled(self._json(response), new)

    async def score(self, ids: Sequence[int], features: Mapping[str, Any] | None = None) -> list[float]:
        """Log-probability (temperature 1) of every token but the first, computed anew.

        Args:
            ids: The tokens.
            features: The images among them.

        Raises:
            Unreachable: As `generate`.
            EngineError: As `generate`.
        """
        try:
            response = await self._async.post("/inference/v1/generate", json=_to_score(ids, features))
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        return self._scored(self._json(response), ids)

    def sample_now(
        self,
        ids: Sequence[int],
        new: int,
        salt: str,
        name: str | None = None,
        features: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Sample ``new`` tokens after a prompt at temperature 1, outside an event loop."""
        body = _to_sample(ids, new, [], 1.0, 1.0, salt, name, features)
        return self._sampled(self._json(self._posted("/inference/v1/generate", body)), new)

    def order(self, path: str, body: Mapping[str, Any], timeout: float | None = None, **query: str) -> None:
        """Send a command and wait until it is done, whatever the server says of it.

        Raises:
            Unreachable: As `generate`.
            EngineError: It refused.
        """
        self._checked(self._posted(path, body, timeout, **query))

    def ask(self, path: str) -> Any:
        """What a server says of itself.

        Raises:
            Unreachable: As `generate`.
            EngineError: It refused.
        """
        try:
            return self._json(self._sync.get(path))
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _posted(self, path: str, body: Mapping[str, Any], timeout: float | None = None, **query: str) -> httpx.Response:
        try:
            return self._sync.post(path, json=body, params=query, timeout=timeout or self.timeout)
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def healthy(self, timeout: float = 5.0) -> bool:
        """Whether the server answers."""
        try:
            return self._sync.get("/health", timeout=timeout).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Give back what the client holds; the connections ended with their requests."""
        self._sync.close()

    def _lost(self, error: httpx.HTTPError) -> Unreachable:
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"the vLLM server at {self.where} did not answer within {self.timeout:g} s")
        return Unreachable(f"the vLLM server at {self.where} cannot be reached: {error or type(error).__name__}")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            said = " ".join(response.text.split())[:400]
            raise EngineError(f"the vLLM server at {self.where} refused: {response.status_code} {said}")
        return response

    def _json(self, response: httpx.Response) -> Any:
        try:
            return self._checked(response).json()
        except ValueError as error:
            raise self._garbage(response.text) from error

    def _garbage(self, said: Any) -> EngineError:
        text = " ".join(str(said).split())[:200]
        return EngineError(f"the vLLM server at {self.where} answered with something else than tokens: {text}")

    def _scored(self, said: Any, ids: Sequence[int]) -> list[float]:
        try:
            return [float(of[str(i)]["logprob"]) for i, of in zip(ids[1:], said["prompt_logprobs"][1:], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise self._garbage(said) from error

    def _sampled(self, said: Any, most: int) -> Answer:
        """Read an answer; whatever does not fit is an error, never a guess."""
        try:
            (choice,) = said["choices"]
            ids, content = choice["token_ids"], choice["logprobs"]["content"] if choice["token_ids"] else []
            logps = [float(token["logprob"]) for token in content]
            versions = [-1] * len(ids)
            for span in choice["weight_versions"] if ids else []:
                versions[span["start"] : span["end"]] = [int(span["version"])] * (span["end"] - span["start"])
            finish = choice["finish_reason"]
            cached = ((said.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            fits = (
                all(type(i) is int and i >= 0 for i in ids)
                and [token["token_id"] for token in content] == ids
                and len(ids) == len(logps) == len(versions) <= most
                and all(math.isfinite(p) and p < 1e-3 for p in logps)
                and min(versions, default=0) >= 0
                and finish in ("stop", "length", "abort")
                and (finish == "abort" or ids)
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._garbage(said) from error
        if not fits:
            raise self._garbage(choice)
        return Answer(ids, logps, versions, finish, int(cached))


def sampling(new: int, stop: list[int], temperature: float, top_p: float) -> dict[str, Any]:
    """What vLLM is told of how to sample."""
    return {
        "max_tokens": new,
        "temperature": temperature,
        "top_p": top_p,
        "logprobs": 0,
        "stop_token_ids": stop,
        "ignore_eos": True,
        "detokenize": False,
    }


def _to_sample(
    ids: Sequence[int],
    new: int,
    stop: list[int],
    temperature: float,
    top_p: float,
    salt: str,
    name: str | None,
    features: Mapping[str, Any] | None,
) -> dict[str, Any]:
    params = sampling(new, stop, temperature, top_p)
    body = {"token_ids": list(ids), "cache_salt": salt, "sampling_params": params, "model": name}
    return body if features is None else {**body, "features": features}


def _to_score(ids: Sequence[int], features: Mapping[str, Any] | None) -> dict[str, Any]:
    body = {"token_ids": list(ids), "sampling_params": SCORING}
    return body if features is None else {**body, "features": features}
