"""POAD beside NTPO and TWOSOME on Overcooked (tomato salad).

All three start from the same model of each seed, which has learned the words from an expert that plays at random in
half of its turns, and choose among the same admissible actions. Only `algo.method` differs. Prints the table and
draws the picture of docs/learning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay

METHODS = {"poad": "POAD", "ntpo": "NTPO", "twosome": "TWOSOME"}
STEPS = 25


def warm_start(seed: int, folder: Path) -> None:
    """Learn the words."""
    from agentgym.trainers import sft

    study.train(sft, overlay(load(study.CONFIGS / "overcooked_sft.yaml"), {"seed": seed}), folder)


def learn(method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import poad

    changes = {
        "model": {"path": str(start / "run" / "final")},
        "algo": {"method": method},
        "steps": STEPS,
        "seed": seed,
        "save_every": 10,
        "eval": {"final_episodes": 100},
    }
    study.train(poad, overlay(load(study.CONFIGS / "poad.yaml"), changes), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    folders = {method: [out / f"{method}-{s}" for s in range(seeds)] for method in METHODS}
    after = {method: np.array([study.result(f) for f in folders[method]]) for method in METHODS}
    rows = [["start", study.percent([study.result(f, "before") for f in folders["poad"]]), "", ""]]
    for method, name in METHODS.items():
        each = ", ".join(f"{100 * x:.0f}" for x in after[method])
        less = "" if method == "poad" else study.percent(after["poad"] - after[method])
        rows.append([name, study.percent(after[method]), each, less])
    print(study.table(["", "success, %", "each seed", "POAD's lead, points"], rows))

    def panel(axes: Any) -> None:
        for colour, (method, name) in zip(study.COLOURS, METHODS.items(), strict=False):
            study.band(axes, [study.curve(f, "episode/success") for f in folders[method]], name, colour)
        axes.set(title="Overcooked, tomato salad", xlabel="training step", ylabel="success of training episodes")

    study.figure([panel], study.DOCS / "poad.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "poad")
    if args.run:
        method, seed = args.run.split("-")
        folder, start = args.out / args.run, args.out / f"start-{seed}"
        if method == "start":
            warm_start(int(seed), folder)
        else:
            learn(method, int(seed), start, folder)
        return
    study.run_all([f"start-{s}" for s in range(args.seeds)], args)
    study.run_all([f"{method}-{s}" for s in range(args.seeds) for method in METHODS], args)
    report(args.out, args.seeds)


if __name__ == "__main__":
    main()
