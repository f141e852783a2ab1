"""A tiny vision-language model that learns to click: a square on a screen, seen as pixels alone.

A Qwen3-VL of two towers and less than a million parameters begins with a few demonstrations and goes on with GRPO,
whose reward is 1 for a click in the square. The same runs without the image (a blank screen) show what can be had
without seeing. Prints the table and draws the picture of docs/learning.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import overlay

SCREENS = {"shown": ("screen shown", {"squares": 1}), "blank": ("screen blank", {"squares": 1, "blank": True})}
ENV = "clicking_screens:study/Squares-v0"
STEPS = 40
SETTINGS: dict[str, Any] = {
    "rollout": {"max_turns": 1, "max_new_tokens": 12, "context_limit": 512},
    "model": {"threads": 1},
    "eval": {"final_episodes": 256},
}


def learn(screen: str, seed: int, folder: Path) -> None:
    """Imitate, then learn by reinforcement."""
    from agentgym.trainers import grpo, sft

    shared = overlay(SETTINGS, {"env": {"id": ENV, "kwargs": SCREENS[screen][1]}, "seed": seed})
    tiny = {"family": "qwen3_vl", "hidden": 96, "layers": 3, "heads": 4, "vocab_size": 320}
    imitation = {
        "model": tiny,
        "demonstrations": 800,
        "epochs": 16,
        "batch_size": 16,
        "optim": {"lr": 2e-3, "warmup_steps": 20, "decay_steps": 800},
    }
    start = folder / "start"
    if not study.finished(start):
        study.train(sft, overlay(shared, imitation), start)
    reinforcement = {
        "model": {"path": str(start / "run" / "final")},
        "steps": STEPS,
        "groups": 16,
        "group_size": 8,
        "optim": {"lr": 1e-4, "warmup_steps": 3},
        "save_every": 10,
    }
    study.train(grpo, overlay(shared, reinforcement), folder)


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    runs = study.folders_of(out, SCREENS, seeds)
    rows = []
    for name, folders in runs.items():
        before, after = (np.array([study.result(f, when) for f in folders]) for when in ("before", "after"))
        each = ", ".join(f"{100 * x:.0f}" for x in after)
        rows.append([name, study.percent(before), study.percent(after), each])
    print(study.table(["", "after imitation, %", "after GRPO, %", "each seed"], rows))
    starts = {name: [folder / "start" for folder in folders] for name, folders in runs.items()}
    loss = study.curves(starts, "sft/nll", "Imitation", "nats a token", 20)

    def imitation(axes: Any) -> None:
        loss(axes)
        axes.set_ylim(0, 0.6)

    grpo = study.curves(runs, "episode/success", "GRPO", "success of training episodes")
    study.figure([imitation, grpo], study.DOCS / "clicking.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "clicking")
    if args.run:
        screen, seed = args.run.split("-")
        learn(screen, int(seed), args.out / args.run)
    else:
        study.run_all([f"{screen}-{s}" for s in range(args.seeds) for screen in SCREENS], args)
        report(args.out, args.seeds)


if __name__ == "__main__":
    main()
