"""vLLM in this process, where it is installed beside torch: a thread decodes, and new weights are read where they are.

`LocalEngine` speaks as a server and its client do (`vllm_server.VLLMServer`, `vllm_client.VLLMClient`), and starts no
other process. Everything that touches the engine is done by its one thread, in the order in which it was asked for.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from agentgym.errors import EngineError
from agentgym.policies.vllm_client import SCORING, Answer, Unreachable, sampling
from agentgym.policies.vllm_server import ENVIRONMENT, Folder
from agentgym.policies.vllm_weights import Command, Merged, served_state

_ENVIRONMENT = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class LocalEngine(Folder):
    """An engine of vLLM and the thread that runs it.

    Attributes:
        where: For messages.
        url: The same.
        ended: Why it stopped, None while it runs.
    """

    where = url = "this process"

    def __init__(self, kv_cache_gb: int = 2):
        """Prepare; vLLM is imported by `start`.

        Args:
            kv_cache_gb: Memory for keys and values of the build for CPUs.
        """
        super().__init__()
        self.ended: str | None = None
        self._kv_cache_gb = kv_cache_gb
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._open: dict[str, Future[Answer]] = {}
        self._so_far: dict[str, Any] = {}
        self._held: list[Callable[[], None]] = []
        self._paused = False
        self._asked, self._version = 0, 0
        self._thread: threading.Thread | None = None
        self._engine: Any = None

    def start(self, model: Path, arguments: Sequence[str]) -> None:
        """Make the engine.

        Args:
            model: Folder of its first weights.
            arguments: As `vllm serve` takes them.

        Raises:
            EngineError: If it cannot be made, or was made before and has failed.
        """
        if self._thread is not None:
            raise EngineError(f"vLLM failed in this process ({self.ended}): go on with --resume")
        for name, value in {**_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(self._kv_cache_gb)}.items():
            os.environ.setdefault(name, value)
        states = random.getstate(), torch.get_rng_state()  # vLLM seeds both
        try:
            self._engine = _make(["--model", str(model), *arguments])
        except (Exception, SystemExit) as error:
            raise EngineError(f"vLLM could not be started in this process: {error}") from error
        finally:
            random.setstate(states[0])
            torch.set_rng_state(states[1])
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give back the engine's memory."""
        if self._thread is not None and self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None
        super().close()

    def healthy(self, timeout: float = 5.0) -> bool:
        """Whether it runs."""
        return self._thread is not None and self.ended is None

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
        """As `vllm_client.VLLMClient.generate`."""
        asked = self._ask(ids, salt, features, sampling(new, [stop], temperature, top_p))
        return await asyncio.wrap_future(asked)

    async def score(self, ids: Sequence[int], features: Mapping[str, Any] | None = None) -> list[float]:
        """As `vllm_client.VLLMClient.score`."""
        asked = self._ask(ids, None, features, SCORING)
        return (await asyncio.wrap_future(asked)).logps

    def sample_now(
        self,
        ids: Sequence[int],
        new: int,
        salt: str,
        name: str | None = None,
        features: Mapping[str, Any] | None = None,
    ) -> Answer:
        """As `vllm_client.VLLMClient.sample_now`."""
        return self._ask(ids, salt, features, sampling(new, [], 1.0, 1.0)).result()

    def order(self, path: str, body: Mapping[str, Any], timeout: float | None = None, **query: str) -> None:
        """Do what a server does at this address.

        Raises:
            EngineError: If it fails.
        """
        orders: dict[str, Callable[[], Any]] = {
            "/pause": self._pause,
            "/resume": self._resume,
            "/reset_prefix_cache": lambda: self._engine.reset_prefix_cache(),
            "/update_weight_version": lambda: setattr(self, "_version", int(body["new_version"])),
            "/sleep": lambda: self._sleep(int(query["level"])),
            "/wake_up": lambda: self._engine.wake_up([query["tags"]]),
        }
        self._wait(orders[path], timeout)

    def load(self, state: Mapping[str, torch.Tensor], timeout: float) -> None:
        """Take weights as they lie in memory.

        Raises:
            EngineError: If they do not fit.
        """
        kwargs = {"weights_iterator": iter([(name, tensor.detach()) for name, tensor in state.items()])}
        self._wait(lambda: self._engine.collective_rpc("reload_weights", kwargs=kwargs), timeout)

    def _wait(self, work: Callable[[], Any], timeout: float | None) -> None:
        try:
            self._do(work).result(timeout)
        except EngineError:
            raise
        except TimeoutError as error:
            raise EngineError(f"vLLM in this process did not obey within {timeout:g} s") from error
        except Exception as error:
            raise EngineError(f"vLLM in this process: {error}") from error

    def _do(self, work: Callable[[], Any]) -> Future[Any]:
        """Let the thread do something."""
        done: Future[Any] = Future()
        if self.ended is None:
            self._work.put((work, done))
        if self.ended is not None and not done.done():
            done.set_exception(Unreachable(f"vLLM failed in this process: {self.ended}"))
        return done

    def _ask(
        self, ids: Sequence[int], salt: str | None, features: Mapping[str, Any] | None, params: Mapping[str, Any]
    ) -> Future[Answer]:
        answer: Future[Answer] = Future()

        def add() -> None:
            if self._paused:
                self._held.append(add)
                return
            self._asked += 1
            key = str(self._asked)
            try:
                self._engine.add_request(key, _prompt(ids, salt, features), _params(params))
                self._open[key] = answer
            except Exception as error:
                answer.set_exception(EngineError(f"vLLM in this process refused: {error}"))

        failed = self._do(add)
        if failed.done() and failed.exception() is not None:
            answer.set_exception(failed.exception())
        return answer

    def _pause(self) -> None:
        """Stop: what is being written is given back as it is."""
        self._paused = True
        for key in list(self._open):
            self._engine.abort_request([key])
            self._answered(key, self._so_far.get(key), "abort")

    def _sleep(self, level: int) -> None:
        self._pause()
        self._engine.sleep(level)

    def _resume(self) -> None:
        self._paused = False
        held, self._held = self._held, []
        for add in held:
            add()

    def _run(self) -> None:
        try:
            while True:
                try:
                    next_ = self._work.get(block=not self._open)
                except queue.Empty:
                    for output in self._engine.step():
                        self._so_far[output.request_id] = output
                        if output.finished:
                            self._answered(output.request_id, output, str(output.outputs[0].finish_reason))
                    continue
                if next_ is None:
                    return
                work, done = next_
                try:
                    done.set_result(work())
                except Exception as error:
                    done.set_exception(error)
        except Exception as error:
            self.ended = f"{type(error).__name__}: {error}"
            lost = Unreachable(f"vLLM failed in this process: {self.ended}")
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(lost)
            while not self._work.empty():
                if (left := self._work.get()) is not None:
                    left[1].set_exception(lost)

    def _answered(self, key: str, output: Any, finish: str) -> None:
        self._so_far.pop(key, None)
        answer = self._open.pop(key)
        if answer.cancelled():
            return
        ids: list[int] = list(output.outputs[0].token_ids) if output is not None else []
        if output is not None and output.prompt_logprobs is not None:
            pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            logps = [float(of[i].logprob) for i, of in pairs]
        else:
            logps = [float(of[i].logprob) for i, of in zip(ids, output.outputs[0].logprobs, strict=True)] if ids else []
        cached = int(getattr(output, "num_cached_tokens", None) or 0)
        answer.set_result(Answer(ids, logps, [self._version] * len(ids), finish, cached))


class InPlace(Merged):
    """Weights that the engine in this process reads where they are; the first are written for it to start with."""

    def __init__(self) -> None:
        super().__init__()
        self._state: dict[str, torch.Tensor] = {}

    def save(self, parent: Path, version: int, model: Any, tokenizer: Any) -> None:
        """Take a version."""
        if not self._state:
            super().save(parent, version, model, tokenizer)
        self._version, self._state = version, served_state(model)

    def hand_over(self, number: int, client: Any, command: Command, timeout: float) -> None:
        """Let the engine read it."""
        client.load(self._state, timeout)


def _make(arguments: list[str]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(arguments)
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(parsed))


def _params(sampling: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**sampling)


def _prompt(ids: Sequence[int], salt: str | None, features: Mapping[str, Any] | None) -> Any:
    salted = {} if salt is None else {"cache_salt": salt}
    if features is None:
        return {"prompt_token_ids": list(ids), **salted}
    from vllm.entrypoints.scale_out.token_in_token_out.mm_features import mm_kwargs_from_features
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import MultiModalFeatures
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    read = MultiModalFeatures(**features)
    places = {
        kind: [PlaceholderRange(offset=p.offset, length=p.length) for p in ranges]
        for kind, ranges in read.mm_placeholders.items()
    }
    return mm_input(
        prompt_token_ids=list(ids),
        mm_kwargs=MultiModalKwargsItems(mm_kwargs_from_features(read)),
        mm_hashes=read.mm_hashes,
        mm_placeholders=places,
        cache_salt=salt,
    )
