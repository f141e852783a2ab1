"""CRAFT-GUI on web tasks told as text: stages beside a mixture and the longest tasks alone, and beside outcomes.

All start from one model, which has learned the commands from demonstrations; the seeds differ in tasks and sampling,
and every condition takes equally many updates. Evaluated on held-out episodes of all tasks, and of the tasks of each
stage. Prints the tables and draws the picture of docs/learning.md. Needs Chromium.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "staged": ("stages, hybrid", {}),
    "mixed": ("mixture, hybrid", {"curriculum": {"order": "mixed"}}),
    "hard": ("longest alone, hybrid", {"curriculum": {"order": "hard_only"}}),
    "staged_coarse": ("stages, outcome", {"craft": {"reward": "coarse"}}),
}
STEPS, STAGES = load(study.CONFIGS / "craft_gui.yaml")["steps"], (1, 2, 3)


def warm_start(folder: Path) -> None:
    """That of the example."""
    from agentgym.trainers import sft

    study.train(sft, load(study.CONFIGS / "craft_gui_sft.yaml"), folder)


def learn(method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import craft_gui

    model = {"path": str(start / "run" / "final")}
    episodes = {"eval": {"final_episodes": 64}, "craft": {"stage_episodes": 32}}
    changes = {"model": model, "seed": seed, "save_every": 6, **episodes}
    settings = overlay(load(study.CONFIGS / "craft_gui.yaml"), changes)
    study.train(craft_gui, overlay(settings, METHODS[method][1]), folder)


def report(out: Path, seeds: int) -> None:
    """Print the tables and draw the picture."""
    folders = {method: [out / f"{method}-{s}" for s in range(seeds)] for method in METHODS}
    after = {method: np.array([study.result(f) for f in folders[method]]) for method in METHODS}
    rows, stages = [], []
    for method, (name, _) in METHODS.items():
        each = ", ".join(f"{100 * x:.0f}" for x in after[method])
        lead = "" if method == "staged" else study.percent(after["staged"] - after[method])
        rows.append([name, study.percent(after[method]), each, lead])
        found = [[study.result(f, f"stage_{s}_step_{STEPS:05d}") for f in folders[method]] for s in STAGES]
        stages.append([name, *map(study.percent, found)])
    first = folders["staged"][0]
    begin = [study.result(first, f"stage_{s}_step_00000") for s in STAGES]
    print(f"start: {100 * study.result(first, 'before'):.1f} %")
    print(study.table(["", "success, %", "each seed", "lead of stages with hybrid, points"], rows))
    head = ["success, %", *(f"stage {s}" for s in STAGES)]
    print(study.table(head, [["start", *(f"{100 * x:.0f}" for x in begin)], *stages]))

    def panel(axes: Any) -> None:
        places = np.arange(len(STAGES))
        for i, (colour, (method, (name, _))) in enumerate(zip(study.COLOURS, METHODS.items(), strict=False)):
            found = [[study.result(f, f"stage_{s}_step_{STEPS:05d}") for f in folders[method]] for s in STAGES]
            means, halves = zip(*map(study.interval, found), strict=True)
            axes.bar(places + 0.2 * (i - 1.5), means, 0.18, yerr=halves, color=colour, label=name)
        axes.hlines(begin, places - 0.4, places + 0.4, colors="black", linestyles="dotted", label="start")
        axes.set(title="MiniWoB, held-out episodes", ylabel="success", xticks=places)
        axes.set(ylim=(0, 1.5), yticks=np.linspace(0, 1, 6))
        axes.set_xticklabels([f"stage {s}" for s in STAGES])

    study.figure([panel], study.DOCS / "craft_gui.png")


if __name__ == "__main__":
    study.main(__doc__, "craft_gui", list(METHODS), warm_start, learn, report)
