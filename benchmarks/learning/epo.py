"""EPO beside its base and beside a plain entropy bonus, over GRPO and over PPO, on MapReader.

All start from one model, warm-started as in the quickstart; the seeds differ in games and sampling. Episodes have up to
12 turns and are rewarded when the coin is taken and when it is in the box. Prints the table and draws the picture of
docs/learning.md. Needs Java.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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


def learn(base: str, method: str, seed: int, start: Path, folder: Path) -> None:
    """Reinforcement learning."""
    from agentgym.trainers import epo

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
        folders = {method: [out / f"{base}-{method}-{s}" for s in range(seeds)] for method in METHODS}
        after = {method: np.array([study.result(f) for f in folders[method]]) for method in METHODS}
        for method, (name, _) in METHODS.items():
            each = ", ".join(f"{100 * x:.0f}" for x in after[method])
            lead = "" if method == "base" else study.percent(after[method] - after["base"])
            entropy = study.interval([study.curve(f, "policy/entropy")[-1] for f in folders[method]])
            title = base.upper() if method == "base" else f"{base.upper()} {name}"
            rows.append([title, study.percent(after[method]), each, lead, f"{entropy[0]:.3f} ± {entropy[1]:.3f}"])
        for key, label in (("episode/success", "success of training episodes"), ("policy/entropy", "entropy, nats")):

            def panel(axes: Any, folders: Any = folders, key: str = key, label: str = label, base: str = base) -> None:
                for colour, (method, (name, _)) in zip(study.COLOURS, METHODS.items(), strict=False):
                    study.band(axes, [study.curve(f, key) for f in folders[method]], name, colour)
                axes.set(title=base.upper(), xlabel="training step", ylabel=label)

            panels.append(panel)
    start = study.result(out / "grpo-base-0", "before")
    print(f"start: {100 * start:.1f} %")
    print(study.table(["", "success, %", "each seed", "lead over the base, points", "entropy at the end"], rows))
    study.figure(panels, study.DOCS / "epo.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "epo")
    if args.run == "start":
        warm_start(args.out / "start")
    elif args.run:
        base, method, seed = args.run.split("-")
        learn(base, method, int(seed), args.out / "start", args.out / args.run)
    else:
        study.run_all(["start"], args)
        runs = [f"{base}-{method}-{s}" for s in range(args.seeds) for base in BASES for method in METHODS]
        study.run_all(runs, args)
        report(args.out, args.seeds)


if __name__ == "__main__":
    main()
