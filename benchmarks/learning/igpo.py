"""IGPO beside outcomes alone and GiGPO, on questions of two hops; gains of log or probability, apart or joint.

All start from one model, which has learned the format and to copy names from demonstrations; the seeds differ in
questions and sampling. Evaluated on questions whose starting places were never trained on. Prints the table and draws
the picture of docs/learning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import study

from agentgym.config import load, overlay

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "outcome": ("outcome alone (GRPO)", {"preset": "outcome"}),
    "gigpo": ("GiGPO", {}),
    "log_separate": ("IGPO: log, separate", {"igpo": {"gain": "log", "norm": "separate"}}),
    "log_joint": ("IGPO: log, joint", {"igpo": {"gain": "log", "norm": "joint"}}),
    "prob_separate": ("IGPO: probability, separate", {"igpo": {"gain": "prob", "norm": "separate"}}),
    "prob_joint": ("IGPO: probability, joint", {"igpo": {"gain": "prob", "norm": "joint"}}),
}
STEPS = 30


def warm_start(folder: Path) -> None:
    """That of the example."""
    from agentgym.trainers import sft

    study.train(sft, load(study.CONFIGS / "search_sft.yaml"), folder)


def learn(method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import gigpo, igpo

    settings = load(study.CONFIGS / "igpo.yaml")
    changes = {"model": {"path": str(start / "run" / "final")}, "steps": STEPS, "seed": seed, "save_every": 10}
    if method == "gigpo":
        settings = {key: value for key, value in settings.items() if key not in ("preset", "igpo")}
        changes |= {"preset": "gigpo_std", "algo": {"aggregation": "seq_mean_token_mean", "kl_coef": 0.001}}
        study.train(gigpo, overlay(settings, changes), folder)
    else:
        study.train(igpo, overlay(settings, changes | METHODS[method][1]), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    runs = study.folders_of(out, METHODS, seeds)
    turns = [study.number([study.result(f, "after", "turns") for f in folders]) for folders in runs.values()]
    rows = [[*row, turn] for row, turn in zip(study.compared(runs), turns, strict=True)]
    print(f"start: {100 * study.result(out / 'outcome-0', 'before'):.1f} %")
    print(study.table(["", "success, %", "each seed", "lead over outcomes, points", "turns"], rows))

    def panel(title: str, *methods: str) -> study.Panel:
        shown = {METHODS[m][0]: runs[METHODS[m][0]] for m in methods}
        return study.curves(shown, "episode/success", title, "success of training episodes")

    methods = panel("SearchQA, two hops", "outcome", "gigpo", "log_separate")
    variants = panel("IGPO's variants", *(m for m in METHODS if "_" in m))
    study.figure([methods, variants], study.DOCS / "igpo.png")


if __name__ == "__main__":
    study.main(__doc__, "igpo", list(METHODS), warm_start, learn, report)
