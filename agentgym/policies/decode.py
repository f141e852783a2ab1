"""Which engine writes the turns of the policy that is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agentgym.errors import ConfigError


@dataclass
class DecodeConfig:
    """The engine that decodes.

    Attributes:
        backend: hf: the trainer's own module in this process; vllm: servers of vLLM, which take the weights after
            every update.
        staleness: Most versions that the policy which wrote a token may be behind the one that is trained on it;
            above 0 groups are played ahead while the learner updates.
        lora: How servers get adapters: merged into the weights of the model, which they read anew; or adapter: alone,
            beside a model that stays (servers at ``urls`` then need --enable-lora).
        transfer: How servers get the whole weights: as files in memory or a folder, or from card to card over nccl, for
            which vLLM must be installed beside this package too.
        address: Where servers reach this process for nccl.
        sleep: Whether servers give up the memory of weights, keys and values while the learner updates, where both
            share a card (servers at ``urls`` then need --enable-sleep-mode; the build for CPUs keeps it).
        in_process: vLLM runs in the trainer's process instead of servers, and must be installed there.
        servers: How many are started here.
        urls: Servers that run already, in place of those started here: ``http://HOST:PORT``, or ``unix:`` and the
            file of a socket. Start them with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out; a key, if they want one, is
            taken from VLLM_API_KEY.
        weights_dir: Folder that servers at ``urls`` read new weights from; memory of this machine by default.
        python: Interpreter of the environment with vLLM; by default that in AGENTGYM_VLLM_PYTHON, ``.venv-vllm``
            here, or the one that runs this.
        arguments: Further arguments of the servers, for example ``[--tensor-parallel-size, "2"]``.
        kv_cache_gb: Memory for keys and values of each server of the build for CPUs. On a GPU it is
            ``--gpu-memory-utilization`` in ``arguments``.
        start_timeout: Seconds a server may take to start.
        sync_timeout: Seconds it may take to change its weights.
        request_timeout: Seconds it may take for a turn.
        tolerance: Most that a log-probability of a server may differ from the trainer's after a change of weights, in
            nats; null: 1e-4 for float32, 0.5 for half precision.
    """

    backend: Literal["hf", "vllm"] = "hf"
    staleness: int = 0
    lora: Literal["merged", "adapter"] = "merged"
    transfer: Literal["files", "nccl"] = "files"
    address: str = "127.0.0.1"
    sleep: bool = False
    in_process: bool = False
    servers: int = 1
    urls: tuple[str, ...] = ()
    weights_dir: str = ""
    python: str = ""
    arguments: tuple[str, ...] = ()
    kv_cache_gb: int = 2
    start_timeout: float = 600.0
    sync_timeout: float = 120.0
    request_timeout: float = 600.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.staleness < 0:
            raise ConfigError(f"decode.staleness is {self.staleness}: it must be 0 or more")
        if self.staleness and self.backend == "hf":
            raise ConfigError("decode.staleness needs decode.backend=vllm: hf decodes with the module that is trained")
        if self.sleep and self.backend == "hf":
            raise ConfigError("decode.sleep needs decode.backend=vllm: hf decodes with the module that is trained")
        if self.sleep and self.staleness:
            raise ConfigError("decode.sleep stops the servers during an update, decode.staleness needs them then")
        if self.transfer == "nccl" and self.lora == "adapter":
            raise ConfigError("decode.transfer=nccl sends whole weights: decode.lora must be merged")
        if self.in_process and self.backend == "hf":
            raise ConfigError("decode.in_process needs decode.backend=vllm")
        if self.in_process and (self.servers > 1 or self.urls or self.python):
            raise ConfigError("decode.in_process is vLLM in the trainer's process: no decode.servers, urls or python")
        if self.in_process and (self.lora == "adapter" or self.transfer == "nccl"):
            raise ConfigError("decode.in_process reads whole weights where they are: no decode.lora=adapter, no nccl")
        if self.servers < 1:
            raise ConfigError(f"decode.servers is {self.servers}: it must be at least 1")
        for name in ("kv_cache_gb", "start_timeout", "sync_timeout", "request_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"decode.{name} is {getattr(self, name)}: it must be above 0")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ConfigError(f"decode.tolerance is {self.tolerance}: it must be above 0")
        if self.urls and self.servers > 1:
            raise ConfigError("decode.servers starts servers, decode.urls takes some that run: give one of them")
        if self.weights_dir and not self.urls:
            raise ConfigError("decode.weights_dir is for servers at decode.urls: those started here read from memory")
