"""POAD beside NTPO and TWOSOME on Overcooked (tomato salad), with short and with long actions.

The long actions do the same in four times the words. Each seed has a model for each length, which has learned to
write from an expert that plays at random in most of its turns; the three methods start from it. POAD and NTPO write
freely, TWOSOME chooses among the admissible actions. Only `algo.method` and, with it, `algo.acting` differ. Prints
the table and draws the picture of docs/learning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study
from long_actions import FRAMES

from agentgym.config import load, overlay

METHODS = {"poad": "POAD", "ntpo": "NTPO", "twosome": "TWOSOME"}


def kitchen(length: str) -> dict[str, Any]:
    """The environment."""
    return {"env": {"id": "long_actions:study/LongOvercooked-v0", "kwargs": {"frame": length}}}


def warm_start(length: str, seed: int, folder: Path) -> None:
    """Learn to write."""
    from agentgym.trainers import sft

    changes = {**kitchen(length), "seed": seed, "eval": {"final_episodes": 1}}
    study.train(sft, overlay(load(study.CONFIGS / "overcooked_sft.yaml"), changes), folder)


def learn(length: str, method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import poad

    acting = "restricted" if method == "twosome" else "free"
    changes = {
        **kitchen(length),
        "model": {"path": str(start / "run" / "final")},
        "algo": {"method": method, "acting": acting},
        "seed": seed,
        "save_every": 4,
    }
    study.train(poad, overlay(load(study.CONFIGS / "poad.yaml"), changes), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    rows, panels, leads = [], [], {}
    for length in FRAMES:
        folders = {method: [out / f"{length}-{method}-{s}" for s in range(seeds)] for method in METHODS}
        after = {method: np.array([study.result(f) for f in folders[method]]) for method in METHODS}
        before = [study.result(f, "before") for f in folders["poad"]]
        tokens = [study.result(f, "before", "tokens") / study.result(f, "before", "turns") for f in folders["poad"]]
        leads[length] = after["poad"] - after["ntpo"]
        rows.append([f"**{length}**, {np.mean(tokens):.1f} tokens an action", "", "", "", ""])
        rows.append(["start", study.percent(before), "", "", ""])
        for method, name in METHODS.items():
            each = ", ".join(f"{100 * x:.0f}" for x in after[method])
            less = "" if method == "poad" else study.percent(after["poad"] - after[method])
            mean = [study.curve(f, "episode/success").mean() for f in folders[method]]
            rows.append([name, study.percent(after[method]), each, less, study.percent(mean)])

        named = {name: folders[method] for method, name in METHODS.items()}
        panels.append(study.curves(named, "episode/success", f"{length} actions", "success of training episodes", 3))
    head = ["", "success after, %", "each seed", "POAD's lead, points", "mean success while training, %"]
    print(study.table(head, rows))
    print(f"lead over NTPO, long less short: {study.percent(leads['long'] - leads['short'])} points")
    study.figure(panels, study.DOCS / "poad.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "poad")
    if args.run:
        length, method, seed = args.run.split("-")
        folder, start = args.out / args.run, args.out / f"{length}-start-{seed}"
        if method == "start":
            warm_start(length, int(seed), folder)
        else:
            learn(length, method, int(seed), start, folder)
        return
    for s in range(args.seeds):
        study.run_all([f"{length}-start-{s}" for length in FRAMES], args)
        study.run_all([f"{length}-{method}-{s}" for method in METHODS for length in FRAMES], args)
    report(args.out, args.seeds)


if __name__ == "__main__":
    main()
