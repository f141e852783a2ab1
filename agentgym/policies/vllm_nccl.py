"""Weights that go from the trainer's card to those of the servers over NCCL; nothing is written after the start.

The transport on both sides is vLLM's own (vllm/distributed/weight_transfer), so that vLLM must be installed beside this
package too. Not run so far: that takes two GPUs. What is said to the server, and vLLM's side of it but for NCCL itself,
is tested.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from agentgym.errors import ConfigError, EngineError
from agentgym.policies.vllm_weights import Command, Merged, served_state


class Broadcast(Merged):
    """Every version is sent to each server in turn; one that starts reads the first, and is sent the newest."""

    def __init__(self, address: str):
        """Look for vLLM and a card.

        Args:
            address: Where the servers reach this process.

        Raises:
            ConfigError: If one of them is missing.
        """
        super().__init__()
        try:
            from vllm.distributed.weight_transfer import nccl_engine
        except ImportError as error:
            raise ConfigError(
                f"decode.transfer is nccl, which needs vLLM beside this package ({error}): install it here, or set "
                "decode.transfer=files"
            ) from error
        if not torch.cuda.is_available():
            raise ConfigError("decode.transfer is nccl, but torch sees no CUDA device: set decode.transfer=files")
        self._nccl, self._address = nccl_engine, address
        self._live: dict[str, torch.Tensor] = {}
        self._copy: dict[str, torch.Tensor] = {}
        self._sent: dict[str, torch.Tensor] = {}
        self._engines: dict[int, Any] = {}
        self._lock = threading.Lock()

    def flags(self, model: Any) -> list[str]:
        """Arguments of servers."""
        return ["--weight-transfer-config", '{"backend": "nccl"}']

    def save(self, parent: Path, version: int, model: Any, tokenizer: Any) -> None:
        """Take a version, and a copy of it for servers that start later; the first is written too, to start with."""
        if not self._live:
            super().save(parent, version, model, tokenizer)
        self._version, self._live = version, served_state(model)
        self._copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._live.items()}

    def started(self, number: int, client: Any) -> None:
        """Meet a server that was just started, and send it the newest version."""
        self._engines.pop(number, None)
        self.give(number, client, 600.0)

    def hand_over(self, number: int, client: Any, command: Command, timeout: float) -> None:
        """Send the newest version to a server that is paused, within a deadline.

        Raises:
            EngineError: If it did not arrive.
        """
        failed: list[BaseException] = []

        def send() -> None:
            try:
                with self._lock:
                    self._sent = self._live if number in self._engines else self._copy
                    if number not in self._engines:
                        self._engines[number] = self._meet(client, command)
                    self._engines[number].send_weights()
            except Exception as error:
                failed.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(timeout)
        if sender.is_alive():
            failed.append(TimeoutError(f"not within {timeout:g} s"))
        if failed:
            self._engines.pop(number, None)
            raise EngineError(f"the vLLM server at {client.where} did not get the weights over NCCL: {failed[0]}")

    def _meet(self, client: Any, command: Command) -> Any:
        """Join a group with all cards of a server."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        size = 1 + int(client.ask("/get_world_size")["world_size"])
        info = self._nccl.NCCLTrainerInitInfo(rank=0, master_address=self._address, master_port=port, world_size=size)
        source = _source(self._nccl, self)
        return self._nccl.NCCLTrainerWeightTransferEngine.trainer_init(info, client=_Control(command), source=source)

    @property
    def sent(self) -> Mapping[str, torch.Tensor]:
        """What is being sent."""
        return self._sent


class _Control:
    """What vLLM's transport says to a server while it sends."""

    def __init__(self, command: Command):
        self._command = command

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._command("/init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._command("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._command("/update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._command("/finish_weight_update")


def _source(nccl: Any, weights: Broadcast) -> Any:
    """What is being sent, as vLLM's transport reads it."""
    device = "cuda" if torch.cuda.device_count() else "cpu"

    class Source(nccl.WeightSource):
        def metadata(self) -> list[Any]:
            return [nccl.ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in weights.sent.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights.sent.items():
                yield name, tensor.detach().to(device)

    return Source()
