"""EAPO beside GSPO on research: do fewer rounds come of paying early ends more?

All start from one model, which has learned from an expert that wastes four rounds of ten; the seeds differ in questions
and sampling. The two methods are one trainer with γ = 0.995 and γ = 1; EAPO also with a floor of σ. Evaluated on
questions whose starting places were never trained on. Prints the table and draws the picture of docs/learning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gspo": ("GSPO (γ = 1)", {"preset": "gspo"}),
    "eapo": ("EAPO", {"preset": "eapo"}),
    "floor": ("EAPO, σ ≥ 0.1", {"preset": "eapo", "eapo": {"sigma_floor": 0.1}}),
}
STEPS = 30
TASK = {
    "env": {
        "id": "research_tasks:study/Errands-v0",
        "kwargs": {"dawdle": 0.4, "max_rounds": 10},
        "eval_options": {"split": "dev"},
    },
    "rollout": {"codec": "report", "max_turns": 10, "max_new_tokens": 80, "context_limit": 512},
}


def warm_start(folder: Path) -> None:
    """Learn the format, to copy names, and to waste rounds."""
    from agentgym.trainers import sft

    study.train(sft, overlay(load(study.CONFIGS / "iterresearch_sft.yaml"), TASK), folder)


def learn(method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import iterresearch

    changes = {"model": {"path": str(start / "run" / "final")}, "steps": STEPS, "seed": seed, "save_every": 10}
    settings = overlay(load(study.CONFIGS / "iterresearch.yaml"), overlay(TASK, changes))
    study.train(iterresearch, overlay(settings, {"eval": {"final_episodes": 256}, **METHODS[method][1]}), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    runs = study.folders_of(out, METHODS, seeds)
    rounds = [np.array([study.result(f, "after", "turns") for f in folders]) for folders in runs.values()]
    rows = [
        [*row, study.number(mean), "" if mean is rounds[0] else study.number(mean - rounds[0])]
        for row, mean in zip(study.compared(runs), rounds, strict=True)
    ]
    before = out / "gspo-0"
    print(f"start: {100 * study.result(before, 'before'):.1f} %, {study.result(before, 'before', 'turns'):.2f} rounds")
    head = ["", "success, %", "each seed", "lead over GSPO, points", "rounds", "more than GSPO"]
    print(study.table(head, rows))
    panels = [
        study.curves(runs, "episode/success", "Research, one look-up", "success of training episodes"),
        study.curves(runs, "episode/turns", "Research, one look-up", "rounds of training episodes"),
    ]
    study.figure(panels, study.DOCS / "eapo.png")


if __name__ == "__main__":
    study.main(__doc__, "eapo", list(METHODS), warm_start, learn, report)
