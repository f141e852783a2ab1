"""A person at the terminal as a policy: reads what its seat sees, types a line."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from agentgym.errors import EngineError
from agentgym.play import say
from agentgym.policies.base import Generation, Request
from agentgym.renderer import ByteTokenizer, Renderer


class HumanSession:
    """A seat of the person."""

    live = True

    def __init__(self, policy: HumanPolicy):
        self.policy = policy
        self.told = False

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start a game."""
        self.told = False

    async def generate(self, request: Request) -> Generation:
        """Show what is new and wait for a line."""
        shown = [m["content"] for m in request.messages if m["role"] == "system" and not self.told]
        self.told = True
        text = "\n\n".join([*shown, request.messages[-1]["content"]])
        while True:
            line = await asyncio.wrap_future(self.policy.ask(text))
            try:
                ids = request.encode_action(line)
            except ValueError as error:
                text = f"That cannot be played: {error}"
                continue
            return Generation(ids, [0.0] * len(ids), -1, "stop")

    def close(self) -> None:
        """End."""


class HumanPolicy:
    """The policy protocol over standard input. Questions are asked one after the other, however many games wait."""

    version = -1
    context_limit: int | None = None

    def __init__(self, name: str = "human", renderer: Renderer | None = None):
        """Write in the tokens of ``renderer``, by default in bytes."""
        self.name, self.renderer = name, renderer or Renderer(ByteTokenizer())
        self.env_options: dict[str, Any] = {}
        self._questions: queue.SimpleQueue[tuple[str, Future[str]]] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def open(self) -> HumanSession:
        """Open a seat."""
        return HumanSession(self)

    def ask(self, text: str) -> Future[str]:
        """Print a text and read a line, on a thread of its own.

        Returns:
            The line; an `EngineError` at the end of the input.
        """
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True, name="agentgym-human")
            self._reader.start()
        answer: Future[str] = Future()
        self._questions.put((text, answer))
        return answer

    def _read(self) -> None:
        while True:
            text, answer = self._questions.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                say(f"\n{text}")
                answer.set_result(input("> ").strip())
            except EOFError:
                answer.set_exception(EngineError("the input has ended: nobody plays this seat any more"))

    async def score(self, ids: list[int], start: int) -> list[float]:
        """A person has no distribution over tokens."""
        raise EngineError(f"the {self.name} policy cannot score tokens: use hf:FOLDER")

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """A person has no weights."""
        raise EngineError(f"the {self.name} policy has no weights to load")
