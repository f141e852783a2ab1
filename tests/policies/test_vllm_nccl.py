"""Weights over NCCL, which needs two GPUs: everything but NCCL itself, first with a stand-in for vLLM's transport."""

import site
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from agentgym.errors import ConfigError, EngineError
from agentgym.learner.tiny import build_model
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.vllm_nccl import Broadcast

VLLM = "vllm.distributed.weight_transfer.nccl_engine"


@dataclass
class InitInfo:
    rank: int
    master_address: str
    master_port: int
    world_size: int


class Transport:
    """Does what vLLM's does, as far as it can be seen from outside, and puts tensors into a list."""

    arrived: list = []  # noqa: RUF012
    fails: list = []  # noqa: RUF012

    def __init__(self, info, client, source):
        self.client, self.source = client, source
        client.init_weight_transfer_engine({"world_size": info.world_size, "master_port": info.master_port})

    @classmethod
    def trainer_init(cls, info, *, client, source):
        return cls(info, client, source)

    def send_weights(self):
        if self.fails:
            self.fails.pop()()
        self.client.start_weight_update()
        self.client.update_weights({"names": [meta.name for meta in self.source.metadata()]})
        self.arrived.append({name: tensor.clone() for name, tensor in self.source})
        self.client.finish_weight_update()


@dataclass
class Meta:
    name: str
    dtype: torch.dtype
    shape: tuple


class Server:
    """Hears what is said to a server of two cards."""

    where = "here"

    def __init__(self):
        self.heard = []

    def order(self, path, body, timeout=None, **query):
        self.heard.append((path, {**body, **query}))

    def ask(self, path):
        return {"/get_world_size": {"world_size": 2}}[path]


@pytest.fixture
def broadcast(monkeypatch):
    fake = types.ModuleType(VLLM)
    fake.NCCLTrainerInitInfo, fake.NCCLTrainerWeightTransferEngine = InitInfo, Transport
    fake.WeightSource, fake.ParamMeta = object, Meta
    parts = VLLM.split(".")
    for n in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
    monkeypatch.setitem(sys.modules, VLLM, fake)
    monkeypatch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], fake, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Transport, "arrived", [])
    monkeypatch.setattr(Transport, "fails", [])
    return Broadcast("127.0.0.1")


PAUSED, RESUMED = "/pause", ["/reset_prefix_cache", "/update_weight_version", "/resume"]
SENT = ["/start_weight_update", "/update_weights", "/finish_weight_update"]


def test_a_version_is_written_once_and_sent_ever_after(broadcast, tokenizers, tmp_path):
    tokenizer, server = tokenizers(), Server()
    model = build_model(tokenizer, 0, hidden=16, layers=1, heads=2, positions=64)
    broadcast.save(tmp_path, 0, model, tokenizer)
    broadcast.started(0, server)
    assert [path for path, _ in server.heard] == [PAUSED, "/init_weight_transfer_engine", *SENT, *RESUMED]
    assert server.heard[1][1]["init_info"]["world_size"] == 3, "the trainer and both cards"
    names = server.heard[3][1]["update_info"]["names"]
    assert "lm_head.weight" in names
    assert set(names) == {*model.state_dict(), "lm_head.weight"}

    server.heard.clear()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    broadcast.save(tmp_path, 1, model, tokenizer)
    assert [path.name for path in tmp_path.glob("v*")] == ["v0"]
    broadcast.give(0, server, 10.0, asleep=True)
    said = [path for path, _ in server.heard]
    assert said == [PAUSED, "/wake_up", *SENT, "/wake_up", *RESUMED], "the group is kept, and the memory comes back"
    assert dict(server.heard)["/update_weight_version"] == {"new_version": "1"}
    first, second = Transport.arrived
    assert torch.equal(second["lm_head.weight"], first["lm_head.weight"] + 1.0)

    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)  # a learner is at work while a server has to be started again
    broadcast.started(0, server)
    assert torch.equal(Transport.arrived[2]["lm_head.weight"], second["lm_head.weight"])


def test_weights_that_do_not_arrive(broadcast, tokenizers, tmp_path):
    """An error, within the deadline; then a new group is made."""
    tokenizer, server = tokenizers(), Server()
    broadcast.save(tmp_path, 0, build_model(tokenizer, 0, hidden=16, layers=1, heads=2, positions=64), tokenizer)
    broadcast.started(0, server)

    def lost():
        raise RuntimeError("a card fell off the bus")

    for fault, message in ((lost, "a card fell off the bus"), (lambda: time.sleep(2.5), "not within 1 s")):
        Transport.fails.append(fault)
        with pytest.raises(EngineError, match=f"did not get the weights over NCCL: {message}"):
            broadcast.give(0, server, 1.0)
    server.heard.clear()
    broadcast.give(0, server, 10.0)
    assert "/init_weight_transfer_engine" in [path for path, _ in server.heard]


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"needs vLLM beside this package .*set decode\.transfer=files"):
        Broadcast("127.0.0.1")
    with pytest.raises(ConfigError, match=r"decode\.lora must be merged"):
        DecodeConfig(backend="vllm", transfer="nccl", lora="adapter")


DRY = """
import sys, types
sys.path += {paths!r}
import torch
torch.cuda.is_available = lambda: True  # until the transport is made
from agentgym.policies import vllm_nccl
from vllm.distributed.weight_transfer import nccl_engine, nccl_common
def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # whole lines, from both threads
made = vllm_nccl.Broadcast("127.0.0.1")
torch.cuda.is_available = lambda: False
made._live = made._copy = {{"a.weight": torch.ones(2, 3), "lm_head.weight": torch.zeros(4, dtype=torch.bfloat16)}}
nccl_engine.open_trainer_endpoint = lambda info: say("endpoint", info.world_size, info.master_address)
Engine = nccl_engine.NCCLTrainerWeightTransferEngine
Engine._broadcast = lambda self, source, meta: say("sent", [n for n, _ in self._checked_iter(source, meta)])
class Server:
    where = "here"
    def order(self, path, body, timeout=None, **query):
        say(path, {{k: v for k, v in body.get("update_info", {{}}).items()}})
    def ask(self, path):
        return {{"world_size": 1}}
made.give(0, Server(), 60.0)
"""


@pytest.mark.vllm
def test_vllms_own_transport_up_to_nccl(vllm_install):
    """The real classes of vLLM drive the exchange; only the group of cards and the broadcast itself are left out."""
    script = DRY.format(paths=[str(Path(__file__).parents[2]), *site.getsitepackages()])
    done = subprocess.run([vllm_install.python, "-c", script], capture_output=True, text=True, timeout=300)
    said = [line for line in done.stdout.splitlines() if line.startswith(("/", "endpoint", "sent"))]
    assert done.returncode == 0, done.stderr[-2000:]
    assert "endpoint 2 127.0.0.1" in said
    assert "sent ['a.weight', 'lm_head.weight']" in said
    update = (
        "{'names': ['a.weight', 'lm_head.weight'], 'dtype_names': ['float32', 'bfloat16'], 'shapes': [[2, 3], [4]]}"
    )
    assert f"/update_weights {update}" in said
    order = [line.split(" ")[0] for line in said if line.startswith("/")]
    assert order == [PAUSED, "/init_weight_transfer_engine", *SENT, *RESUMED]
