"""GiGPO beside GRPO on ALFWorld: pick up a thing, put it somewhere.

All start from one model, which has learned to write commands from demonstrations; the seeds differ in games and
sampling. The two methods are one trainer with and without the step part of the advantage, so nothing else differs.
Evaluated in games that were never trained on. Prints the table and draws the picture of docs/learning.md. Needs the
games of ALFWorld (`make alfworld`, or `ALFWORLD_DATA`).
"""

from __future__ import annotations

from pathlib import Path

import study

from agentgym.config import load, overlay

METHODS = {"grpo": ("GRPO", 0.0), "gigpo": ("GiGPO", 1.0)}
STEPS = 20


def warm_start(folder: Path) -> None:
    """Learn to write commands."""
    from agentgym.trainers import sft

    study.train(sft, load(study.CONFIGS / "alfworld_sft.yaml"), folder)


def learn(method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import gigpo

    changes = {
        "model": {"path": str(start / "run" / "final")},
        "gigpo": {"step_weight": METHODS[method][1]},
        "steps": STEPS,
        "seed": seed,
        "save_every": 5,
    }
    study.train(gigpo, overlay(load(study.CONFIGS / "alfworld_gigpo.yaml"), changes), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    runs = study.folders_of(out, METHODS, seeds)
    turns = [study.number([study.result(f, "after", "turns") for f in folders], 1) for folders in runs.values()]
    rows = [[*row, turn] for row, turn in zip(study.compared(runs), turns, strict=True)]
    print(f"start: {100 * study.result(out / 'grpo-0', 'before'):.1f} %")
    print(study.table(["", "success, %", "each seed", "lead, points", "turns"], rows))
    panel = study.curves(runs, "episode/success", "ALFWorld, pick and place", "success of training episodes")
    study.figure([panel], study.DOCS / "gigpo.png")


if __name__ == "__main__":
    study.main(__doc__, "gigpo", list(METHODS), warm_start, learn, report)
