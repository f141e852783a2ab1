"""A policy that servers of vLLM decode: they take the trainer's weights after every update, and are watched.

Weights change in place: the servers stop, read the new weights from a folder in memory, forget every key and value of
the old ones, and go on. A turn that was being written then goes on too: what was written stays as it is, with the
version that wrote it, and the rest is sampled by the new weights after the prompt and that, read anew. Adapters may
instead be sent alone, beside a model that stays (``decode.lora=adapter``): nothing stops, and a turn that is being
written is ended by the adapter that began it. Before it is believed that a server has new weights, it must give the
log-probabilities on a probe that the trainer's module had at that time.

What is sampled depends on what else the servers had to do at that time: unlike `HFPolicy` a run does not repeat itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agentgym.errors import ConfigError, ContextFull, EngineError
from agentgym.learner import lora
from agentgym.learner.logprobs import predictions
from agentgym.learner.vision import vision_of
from agentgym.pictures import Picture, Ref
from agentgym.policies.base import Generation, Request, check_request
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.vllm_client import Answer, Unreachable, VLLMClient
from agentgym.policies.vllm_images import Images
from agentgym.policies.vllm_local import InPlace, LocalEngine
from agentgym.policies.vllm_server import Folder, Install, VLLMServer, find_install
from agentgym.policies.vllm_weights import Adapters, Merged
from agentgym.renderer import Renderer
from agentgym.types import ImageSpan

_TRIES, _PROBE_TOKENS, _PROBED, _PROBE_SIZE = 3, 32, 8, (60, 100, 3)
_BLOCK = 32
"""Tokens that are cached together; the 128 that are usual on a CPU are longer than most turns."""
_SEEING = [
    *("--limit-mm-per-prompt", '{"image": 999, "video": 0}'),
    *("--mm-processor-cache-gb", "0", "--no-mm-device-do-normalize"),
]
"""Images come prepared, so that pixels must not be normalised once more; there are no videos."""


@dataclass(frozen=True)
class _Probe:
    """What the trainer's module says of the weights that servers should have.

    Attributes:
        ids: A row of tokens.
        features: The images in it.
        expected: ``[N, V]`` log-probabilities of what comes after the N longest parts of the row.
    """

    ids: list[int]
    features: dict[str, Any] | None
    expected: np.ndarray


class VLLMSession:
    """An episode's place; all that a server remembers for it is its prefix cache.

    Attributes:
        live: Nobody waits for anybody here.
    """

    live = True

    def __init__(self, policy: VLLMPolicy):
        self.policy = policy
        self._server = 0

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode; the members of a group share a server, and with it their prompt."""
        self._server = (key[0] if key else 0) % self.policy.replicas

    async def generate(self, request: Request) -> Generation:
        """Write one turn."""
        return await self.policy.write(self._server, request)

    def close(self) -> None:
        """End."""


class VLLMPolicy:
    """The policy protocol over servers of vLLM.

    Attributes:
        model: The trainer's module, whose weights they take.
        version: Version of the weights that they have.
        stats: Counts of sampled tokens, prompt tokens, those of them that were cached, restarts of servers, and
            the seconds of the last change of weights.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        renderer: Renderer,
        config: DecodeConfig,
        logs: Path,
        context_limit: int,
        concurrency: int = 64,
        name: str = "vllm",
    ):
        """Look for vLLM; servers start with the first `weights_changed`.

        Args:
            model: The trainer's module.
            tokenizer: Saved beside the weights.
            renderer: Renderer of it.
            config: Servers.
            logs: Folder for what they write.
            context_limit: Most tokens of prompt and answer.
            concurrency: Most turns that one server writes at a time.
            name: Recorded in trajectories.

        Raises:
            ConfigError: If vLLM is not installed, a server cannot be reached, or the model cannot be served.
        """
        self.model, self.renderer, self.config, self.name = model, renderer, config, name
        self.version = 0
        self.env_options: dict[str, Any] = {}
        positions = int(model.config.get_text_config().max_position_embeddings)
        self.context_limit: int | None = min(positions, context_limit)
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.stats = {"sampled": 0, "prompt": 0, "cached": 0, "restarts": 0, "sync_s": 0.0}
        vision = vision_of(model)
        self._images = Images(vision, next(model.parameters()).dtype) if vision is not None else None
        if vision is not None and config.lora == "adapter":
            raise ConfigError("decode.lora is adapter, but the model sees: send merged weights (decode.lora=merged)")
        if config.lora == "adapter" and not lora.is_adapted(model):
            raise ConfigError("decode.lora is adapter, but the model has none: set model.lora.rank")
        self._weights = _weights(config)
        self._tokenizer = tokenizer
        self._dtype = next(model.parameters()).dtype
        self._lock = threading.Lock()
        """Held while weights change or a server starts."""
        self._logs, self._concurrency = logs, concurrency
        self._servers: list[VLLMServer | LocalEngine] = []
        self._clients: list[VLLMClient | LocalEngine] = []
        self._folder: Folder | None = None
        self._asleep = False
        self._probe: _Probe | None = None
        self._install = None if config.urls else _find_install(config)
        key = os.environ.get("VLLM_API_KEY", "")
        for url in config.urls:
            self._clients.append(VLLMClient(url, key, config.request_timeout))
            if not self._clients[-1].healthy():
                raise ConfigError(f"decode.urls: no vLLM server answers at {url}/health")

    @property
    def replicas(self) -> int:
        """Number of servers."""
        return len(self.config.urls) or self.config.servers

    @property
    def urls(self) -> list[str]:
        """Where the servers are, as `decode.urls` takes them."""
        return [client.where for client in self._clients]

    @property
    def server_pids(self) -> list[int]:
        """The processes under which the servers that were started here run."""
        return [server.pid for server in self._servers]

    def open(self) -> VLLMSession:
        """Open a place for episodes."""
        return VLLMSession(self)

    def close(self) -> None:
        """End the servers that were started here."""
        for client in self._clients:
            client.close()
        for server in self._servers[1:]:
            server.close()
        if self._folder is not None:
            self._folder.close()

    def __enter__(self) -> VLLMPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def write(self, number: int, request: Request) -> Generation:
        """Write one turn, whatever happens to the server and its weights meanwhile.

        Raises:
            ContextFull: The prompt is too long.
            EngineError: The server failed and could not be brought back, or said nonsense.
        """
        self._check(request)
        probe = None
        if request.probe is not None:
            scores = await self._clients[number].score([*request.ids, *request.probe.ids], self._features(request))
            first = len(request.ids) + request.probe.start - 1
            probe = float(np.mean(scores[first:][: len(request.probe.answer)]))
        ids: list[int] = []
        logps: list[float] = []
        versions: list[int] = []
        finish = "abort"
        while finish == "abort":
            answer = await self._ask(number, request, ids)
            ids, logps, versions = ids + answer.ids, logps + answer.logps, versions + answer.versions
            finish = answer.finish
            self.stats["sampled"] += len(answer.ids)
            self.stats["cached"] += answer.cached
            if finish == "abort" and len(ids) == request.max_new_tokens:
                finish = "length"
            if ids and ids[-1] == self.renderer.close_id:
                finish = "stop"
        self.stats["prompt"] += len(request.ids)
        end: Literal["stop", "length"] = "stop" if finish == "stop" else "length"
        return Generation(ids, logps, versions, end, probe=probe)

    async def _ask(self, number: int, request: Request, written: list[int]) -> Answer:
        client, rest = self._clients[number], request.max_new_tokens - len(written)
        for left in reversed(range(_TRIES)):
            try:
                name = self._weights.name(number)
                answer = await client.generate(
                    [*request.ids, *written],
                    rest,
                    self.renderer.close_id,
                    request.temperature,
                    request.top_p,
                    str(self.version),
                    name,
                    self._features(request),
                )
                return self._weights.labelled(answer, name)
            except Unreachable:
                if not left:
                    raise
                await asyncio.to_thread(self._bring_back, number)
        raise AssertionError

    def _features(self, request: Request) -> dict[str, Any] | None:
        """What a server is told of the images in a prompt."""
        if self._images is None:
            return None
        return self._images.features(request.images, request.pictures, self.version)

    def _check(self, request: Request) -> None:
        if self._folder is None:
            raise EngineError("the vLLM servers have no weights yet: call weights_changed first")
        if self._asleep:
            raise EngineError("the vLLM servers sleep while the learner updates: call weights_changed first")
        check_request(request, self.vocab_size)
        if request.images and self._images is None:
            raise EngineError("the prompt holds images, but the model reads text only")
        behind = max(request.max_new_tokens, len(request.probe.ids) + 1 if request.probe else 0)
        if self.context_limit is not None and len(request.ids) + behind > self.context_limit:
            raise ContextFull(
                f"{len(request.ids)} prompt tokens and {behind} new ones exceed the servers' "
                f"{self.context_limit} positions"
            )
        if request.probe is not None:
            self._check_scores()
        if request.probe is not None and request.temperature != 1:
            raise EngineError("vLLM scores the answers of probes at temperature 1 only: set rollout.temperature=1")

    def _check_scores(self) -> None:
        if self.config.lora == "adapter":
            raise EngineError("vLLM scores no given tokens beside turns with adapters: set decode.lora=merged")

    async def score(self, ids: list[int], start: int) -> list[float]:
        """Log-probabilities (temperature 1) of ``ids[start:]``, each given all ids before it.

        Raises:
            EngineError: If ``start`` is 0 (nothing predicts the first token), a server failed, or adapters are alone.
        """
        self._check_scores()
        if not 0 < start <= len(ids):
            raise EngineError(f"{len(ids)} tokens cannot be scored from position {start}: choose 1 to {len(ids)}")
        return (await self._clients[0].score(ids))[start - 1 :]

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Copy a state dict into the trainer's module, and give it to the servers.

        Raises:
            EngineError: If it does not fit, or a server does not take it.
        """
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise EngineError(f"the weights of version {version} do not fit the model: {reason}") from error
        self.weights_changed(version)

    def weights_changed(self, version: int) -> None:
        """Give the module's weights to every server, in place, and see that it has them; start those that do not run.

        Raises:
            EngineError: If a server does not have them after it was started anew.
        """
        started = time.perf_counter()
        with self._lock:
            fresh = self._folder is None
            folder = self._open().path
            self._weights.save(folder, version, self.model, self._tokenizer)
            self.version = version
            self._probe = self._make_probe()
            self._each(lambda number: self._push(number, fresh))
            self._asleep = False
            self._weights.clear(folder)
        self.stats["sync_s"] = time.perf_counter() - started

    def rest(self) -> None:
        """Let the servers give up their memory until `weights_changed`; nothing if ``decode.sleep`` is not set.

        Raises:
            EngineError: If a server refuses.
        """
        if not self.config.sleep or self._folder is None or self._asleep:
            return
        with self._lock:
            level, timeout = str(self._weights.sleep_level), self.config.sync_timeout
            self._each(lambda number: self._clients[number].order("/sleep", {}, timeout, level=level))
            self._asleep = True

    def _open(self) -> Folder:
        """The folder for weights; made once, with the programs that will keep the servers."""
        if self._folder is None and self._install is None:
            self._folder = Folder(self.config.weights_dir)
        elif self._folder is None and self.config.in_process:
            self._folder = engine = LocalEngine(self.config.kv_cache_gb)
            self._servers, self._clients = [engine], [engine]
        elif self._folder is None and self._install is not None:
            config = self.config
            for number in range(config.servers):
                log = self._logs / f"vllm-{number}.log"
                server = VLLMServer(self._install, log, config.kv_cache_gb, config.start_timeout)
                self._servers.append(server)
                self._clients.append(VLLMClient(server.url, timeout=config.request_timeout))
            self._folder = self._servers[0]
        assert self._folder is not None
        return self._folder

    def _each(self, work: Callable[[int], None]) -> None:
        """Do something with all servers at once."""
        with ThreadPoolExecutor(self.replicas) as threads:
            for done in [threads.submit(work, number) for number in range(self.replicas)]:
                done.result()

    def _push(self, number: int, fresh: bool) -> None:
        """Let one server take the newest weights; if that fails, start it anew with them."""
        if self._servers and (fresh or self._servers[number].ended):
            self._start(number, fresh)
            return
        try:
            self._weights.give(number, self._clients[number], self.config.sync_timeout, self._asleep)
            self._verify(number)
        except EngineError:
            if not self._servers:
                raise
            self._start(number)

    def _start(self, number: int, fresh: bool = False) -> None:
        """Start a server, or start it again, with the newest weights."""
        self._servers[number].start(self._weights.start_folder, self._arguments())
        self._weights.started(number, self._clients[number])
        self.stats["restarts"] += not fresh
        self._verify(number)

    def _arguments(self) -> list[str]:
        """What a server is started with, beside its model."""
        assert self._install is not None
        values = {
            "dtype": str(self._dtype).removeprefix("torch."),
            "max-model-len": self.context_limit,
            "max-num-seqs": self._concurrency,
            "logprobs-mode": "processed_logprobs",
            **({"block-size": _BLOCK} if self._install.cpu else {}),
        }
        flags = ["--enable-prefix-caching"]
        flags += [] if self.config.in_process else ["--enable-prompt-tokens-details"]
        flags += ["--enforce-eager"] if self._install.cpu else []
        flags += ["--enable-sleep-mode"] if self.config.sleep and not self._install.cpu else []
        flags += ["--skip-tokenizer-init"] if self._images is None else _SEEING
        flags += ["--skip-mm-profiling"] if self._images is not None and self._install.cpu else []
        flags += self._weights.flags(self.model)
        return [*(part for k, v in values.items() for part in (f"--{k}", str(v))), *flags, *self.config.arguments]

    def _bring_back(self, number: int) -> None:
        """See to it that a server that did not answer answers again."""
        with self._lock:
            server = self._servers[number] if self._servers else None
            if server is not None and (server.ended or not self._clients[number].healthy()):
                self._start(number)
            elif server is None and not self._clients[number].healthy():
                time.sleep(1.0)

    def _verify(self, number: int) -> None:
        """Compare a server's log-probabilities with those that the trainer's module had when the weights were given."""
        assert self._probe is not None
        client, probe, name = self._clients[number], self._probe, self._weights.name(number)
        off = []
        for length, expected in enumerate(probe.expected, len(probe.ids) - len(probe.expected) + 1):
            answer = client.sample_now(probe.ids[:length], 1, str(self.version), name, probe.features)
            off.append(abs(answer.logps[0] - float(expected[answer.ids[0]])))
        limit = self.config.tolerance or (1e-4 if self._dtype == torch.float32 else 0.5)
        if not max(off) <= limit:
            raise EngineError(
                f"the vLLM server at {client.where} does not have the weights of version {self.version}: its "
                f"log-probabilities differ by {max(off):.2g} from the trainer's (decode.tolerance is {limit:g})"
            )

    def _make_probe(self) -> _Probe:
        """What the module says now: a learner may change it before a server has to be started again."""
        rng = np.random.default_rng(self.version)
        ids: list[int] = rng.integers(0, self.vocab_size, _PROBE_TOKENS).tolist()
        images: list[ImageSpan] = []
        pictures: dict[str, Picture] = {}
        features = None
        if self._images is not None:
            picture = Picture.of(rng.integers(0, 256, _PROBE_SIZE, np.uint8))
            marker = Ref(picture.hash, *_PROBE_SIZE[:2]).marker
            shown, images = self.renderer.encode(*self.renderer.place([{"role": "user", "content": marker}]), False)
            ids = [*shown, *(0 if i == self._images.vision.image_id else i for i in ids)]
            pictures = {picture.hash: picture}
            features = self._images.features(images, pictures, self.version)
        expected = predictions(self.model, ids, len(ids) - _PROBED + 1, images, pictures)
        return _Probe(ids, features, expected.float().cpu().numpy())


def _find_install(config: DecodeConfig) -> Install:
    """Where vLLM is.

    Raises:
        ConfigError: If it is not there.
    """
    if not config.in_process:
        return find_install(config.python)
    try:
        return find_install(sys.executable)
    except ConfigError as error:
        raise ConfigError(
            f"decode.in_process: vLLM is not installed beside this package, in the environment of {sys.executable}: "
            "install it there, or leave decode.in_process out"
        ) from error


def _weights(config: DecodeConfig) -> Merged:
    """How servers get weights."""
    if config.lora == "adapter":
        return Adapters()
    if config.in_process:
        return InPlace()
    if config.transfer == "nccl":
        from agentgym.policies.vllm_nccl import Broadcast

        return Broadcast(config.address)
    return Merged()
