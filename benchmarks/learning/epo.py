"""EPO beside its base and beside a plain entropy bonus, over GRPO and over PPO, on MapReader.

All start from one model, warm-started as in the quickstart; the seeds differ in games and sampling. Episodes have up to
12 turns and are rewarded when the coin is taken and when it is in the box. Prints the table and draws the picture of
docs/learning.md. Needs Java.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import study

from agentgym.config import load, overlay

BASES = ("grpo", "ppo")
STEPS = {"grpo": 15, "ppo": 10}
COEF = 0.01
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {"preset": "epo", "epo": {"coef": 0.0}}),
    "bonus": ("+ entropy bonus", {"preset": "entropy_bonus", "epo": {"coef": COEF}}),
    "epo": ("+ EPO", {"preset": "epo", "epo": {"coef": COEF}}),
}


def warm_start(folder: Path) -> None:
    """The quickstart's."""
    from agentgym.trainers import sft

    study.train(sft, overlay(load(study.CONFIGS / "quickstart_sft.yaml"), {"eval": {"final_episodes": 1}}), folder)


def learn(condition: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import epo

    base, method = condition.split("-")
    changes = {
        "model": {"path": str(start / "run" / "final")},
        "steps": STEPS[base],
        "seed": seed,
        "save_every": 5,
        "eval": {"final_episodes": 128},
        **METHODS[method][1],
    }
    study.train(epo, overlay(load(study.CONFIGS / f"epo_{base}.yaml"), changes), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    rows, panels = [], []
    for base in BASES:
        name = base.upper()
        runs = {
            name if method == "base" else f"{name} {title}": [out / f"{base}-{method}-{s}" for s in range(seeds)]
            for method, (title, _) in METHODS.items()
        }
        for row, folders in zip(study.compared(runs), runs.values(), strict=True):
            rows.append([*row, study.number([study.curve(f, "policy/entropy")[-1] for f in folders], 3)])
        panels += [
            study.curves(runs, "episode/success", name, "success of training episodes"),
            study.curves(runs, "policy/entropy", name, "entropy, nats"),
        ]
    print(f"start: {100 * study.result(out / 'grpo-base-0', 'before'):.1f} %")
    print(study.table(["", "success, %", "each seed", "lead over the base, points", "entropy at the end"], rows))
    study.figure(panels, study.DOCS / "epo.png")


if __name__ == "__main__":
    conditions = [f"{base}-{method}" for base in BASES for method in METHODS]
    study.main(__doc__, "epo", conditions, warm_start, learn, report)
