"""A model behind an OpenAI-compatible chat endpoint, for evaluation only: messages go out, text comes back.

The endpoint keeps its tokens to itself. A trajectory stores the bytes of the text instead, with NaN for their
log-probabilities, and nothing can be trained on them (`learner.pack.rows_of` refuses). What the endpoint counted, and
bills, is summed in ``Trajectory.info`` as ``prompt_tokens`` and ``completion_tokens``.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import openai

from agentgym.errors import ConfigError, EngineError
from agentgym.pictures import Picture, Ref, split
from agentgym.policies.base import Generation, Request
from agentgym.renderer import ByteTokenizer, Renderer
from agentgym.tool_calls import tagged
from agentgym.types import Message


class OpenAISession:
    """The endpoint remembers nothing, so there is nothing to open or close."""

    live = True

    def __init__(self, policy: OpenAIPolicy):
        self.policy = policy

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode."""

    async def generate(self, request: Request) -> Generation:
        """Ask for one turn."""
        return await self.policy.ask(request)

    def close(self) -> None:
        """End."""


class OpenAIPolicy:
    """The policy protocol over a chat endpoint.

    Attributes:
        model: Name of the model at the endpoint.
        url: Base address of the endpoint, with ``/v1``.
        timeout: Seconds a request may take before the client tries again.
    """

    version = -1
    context_limit: int | None = None

    def __init__(self, model: str, url: str, name: str = "openai", timeout: float = 120.0):
        """Prepare a client; nothing is sent yet. The key is taken from OPENAI_API_KEY; loopback needs none.

        Raises:
            ConfigError: If the address is none, or holds a password, or OPENAI_API_KEY is missing.
        """
        loopback = check_address(url)
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key and not loopback:
            raise ConfigError(f"set OPENAI_API_KEY for {url} (any text, if that server wants no key)")
        self.model, self.url, self.name, self.timeout = model, url, name, timeout
        self.renderer = Renderer(ByteTokenizer())
        self.env_options: dict[str, Any] = {}
        self._key = key
        self._client: Any = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=url,
            timeout=timeout,
            # no connection outlives its request: the client works in any event loop and leaves nothing open
            default_headers={"Connection": "close"},
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not loopback),
        )
        self._limit = "max_tokens"
        self._takes_tools = True

    def open(self) -> OpenAISession:
        """Open a place for episodes."""
        return OpenAISession(self)

    async def ask(self, request: Request) -> Generation:
        """Send the messages and return the bytes of the answer.

        Raises:
            EngineError: If the endpoint cannot be reached, refuses, or answers with something else than a message.
        """
        try:
            answer = await self._complete(request)
            choice = answer.choices[0]
            text, finish = _text(choice.message), choice.finish_reason
            usage = answer.usage
        except (openai.OpenAIError, ValueError) as error:
            raise EngineError(self._explain(error)) from None
        except (AttributeError, IndexError, TypeError):
            raise EngineError(f"{self.url} answered without a message: is it a chat endpoint?") from None
        ids = list(text.encode(errors="replace"))
        if finish != "length":
            ids.append(self.renderer.close_id)
        counts = {k: getattr(usage, k, None) for k in ("prompt_tokens", "completion_tokens")}
        return Generation(
            ids,
            [math.nan] * len(ids),
            -1,
            "length" if finish == "length" else "stop",
            usage={k: n for k, n in counts.items() if isinstance(n, int)},
        )

    async def _complete(self, request: Request) -> Any:
        settings: dict[str, Any] = {
            "model": self.model,
            "messages": [_sent(message, request.pictures) for message in request.messages],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": int(request.rng.integers(2**31)),
        }
        while True:
            limit, tools = self._limit, self._takes_tools and list(request.tools)
            sent = {**settings, limit: request.max_new_tokens, **({"tools": tools} if tools else {})}
            try:
                return await self._client.chat.completions.create(**sent)
            except openai.BadRequestError as error:
                said = error.response.text
                if limit == "max_tokens" and "max_completion_tokens" in said:
                    self._limit = "max_completion_tokens"  # what newer models call it
                elif tools and "tool" in said:
                    self._takes_tools = False  # a server without a parser; the first message describes them too
                else:
                    raise

    def _explain(self, error: Exception) -> str:
        """The error as one sentence, without the key."""
        if isinstance(error, openai.APITimeoutError):
            return f"{self.url} did not answer within {self.timeout:g} s"
        if isinstance(error, openai.APIConnectionError):
            return f"cannot reach {self.url}: {error.__cause__ or error}: is the server running, and still?"
        if isinstance(error, openai.APIStatusError):
            said = self._clean(error.response.text)
            return f"{self.url} refused the request for model {self.model!r}: {error.status_code} {said}"
        return f"{self.url} answered with something else than a chat completion: {self._clean(str(error))}"

    def _clean(self, text: str) -> str:
        """One line without the key, which some servers repeat."""
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:400]

    async def score(self, ids: list[int], start: int) -> list[float]:
        """A chat endpoint does not tell."""
        raise EngineError(f"the {self.name} policy cannot score tokens: use hf:FOLDER")

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """The weights are the endpoint's own."""
        raise EngineError(f"the {self.name} policy is for evaluation only: it cannot load weights")


def _sent(message: Message, pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """A message as the endpoint takes it: as text, or in parts if it shows images."""
    parts = [] if message["role"] == "assistant" else list(split(message["content"]))
    if not any(isinstance(part, Ref) for part in parts):
        return dict(message)
    content = [
        {"type": "image_url", "image_url": {"url": pictures[part.hash].url}}
        if isinstance(part, Ref)
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {**message, "content": content}


def _text(message: Any) -> str:
    """The answer as a model without a parser behind it would write it: tool calls in Hermes tags."""
    parts = [message.content] if message.content else []
    for call in getattr(message, "tool_calls", None) or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = call.function.arguments  # the codec says what is wrong with it
        parts.append(tagged(call.function.name, arguments))
    return "\n".join(parts)


def blocking_client(url: str, timeout: float, who: str, *variables: str) -> tuple[Any, str]:
    """A client that is called from one thread and leaves nothing open, and its key ("" for none).

    Args:
        url: Base address, with ``/v1``.
        timeout: Seconds a request may take before it is tried again, twice.
        who: What is behind it, for messages.
        variables: Environment variables that may hold the key, the first one wins; loopback needs none.

    Raises:
        ConfigError: The address is none, or the key is missing.
    """
    loopback = check_address(url)
    key = next((os.environ[name] for name in variables if os.environ.get(name)), "")
    if not key and not loopback:
        raise ConfigError(f"the {who} at {url} needs a key: set {variables[0]} (any text, if it wants none)")
    client = openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        timeout=timeout,
        default_headers={"Connection": "close"},  # no connection outlives its request
        http_client=openai.DefaultHttpxClient(trust_env=not loopback),
    )
    return client, key


def check_address(url: str) -> bool:
    """Whether the address is on this machine.

    Raises:
        ConfigError: If it is no address, or holds what must not be stored with every trajectory.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError("the address of the endpoint cannot be read: write it like http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            "the address of an endpoint is stored with every trajectory: no user, password or ? in it; "
            "the key belongs into OPENAI_API_KEY"
        )
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
