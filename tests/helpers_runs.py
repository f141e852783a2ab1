"""Run folders that are to be the same bit by bit, and runs that are killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import torch
from safetensors.torch import load_file

from agentgym import cli
from agentgym.config import dump
from agentgym.learner import checkpoint


def rows(folder):
    """The lines of a run's metrics, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in lines]


def state(folder):
    """What the newest checkpoint holds beside the model."""
    return torch.load(checkpoint.latest(folder / "checkpoints") / "trainer_state.pt", weights_only=True)


def assert_same_run(a, b):
    """Weights, optimizer and all other state, metrics and evaluations are equal."""
    weights = [load_file(f / "final" / "model.safetensors") for f in (a, b)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    torch.testing.assert_close(state(a), state(b), rtol=0, atol=0)
    assert rows(a) == rows(b)
    assert json.loads((a / "evaluation.json").read_text()) == json.loads((b / "evaluation.json").read_text())


def run_until_killed(algorithm: str, config: Any, out, step: int = 2):
    """Start a run in a process of its own, and kill it once it has logged a training step."""
    file = out.parent / "config.yaml"
    file.write_text(dump(config))
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(cli.main(["train", algorithm, "--config", str(file), "--out", str(out)]))
    deadline, log = time.monotonic() + 120, out / "metrics.jsonl"
    while not log.exists() or f'{{"step": {step}, "reward' not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
