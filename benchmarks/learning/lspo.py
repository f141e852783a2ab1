"""LSPO on Werewolf with a tiny model that speaks a grammar: every iteration against the last one, and its ablations.

The game is that of the example, the small one of the paper's ablations (Werewolf, Seer, two Villagers). All seeds start
from one model. An agent plays as Werewolves against the final agent's village, then the other way round, on the same
deals; the games of all seeds make a cell. Ablations: the tuned model without the strategy (in the paper pairs are
labelled by a large model instead), and the strategy with the untuned model. Prints the table and draws the picture of
docs/learning.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay
from agentgym.evaluate import wilson

ITERATIONS = 3
GAMES = 300
"""Games of each seed, a side and agent."""
AGENTS: dict[str, tuple[int, int, str]] = {
    "start": (0, 0, "llm"),
    **{f"iteration {i}": (i, i, "hybrid") for i in range(1, ITERATIONS + 1)},
    "without the strategy": (ITERATIONS, 0, "llm"),
    "without tuning": (0, ITERATIONS, "rerank"),
}
"""Name -> iteration of the model, iteration of the strategy, mode of play."""
SIDES = ("wolves", "village")


def warm_start(folder: Path) -> None:
    """Learn the game and the grammar from scripted players."""
    from agentgym.trainers import sft

    study.train(sft, load(study.CONFIGS / "werewolf_sft.yaml"), folder)


def settings(seed: int, start: Path) -> dict[str, Any]:
    """Those of the example."""
    changes = {
        "model": {"path": str(start / "run" / "final"), "threads": 1},
        "seed": seed,
        "lspo": {"iterations": ITERATIONS},
    }
    return overlay(load(study.CONFIGS / "lspo.yaml"), changes)


def matches(seed: int, start: Path, trained: Path, folder: Path) -> None:
    """Play every agent against the final one on both sides; cells that were played are kept."""
    from agentgym.trainers import lspo
    from agentgym.trainers.lspo_pairs import Record

    from agentgym.learner.setup import ModelConfig, open_model
    from agentgym.policies.hf import HFPolicy
    from agentgym.selfplay import Seat

    config = lspo.make_config(settings(seed, start))
    job = lspo.Job(config, trained / "run", resume=True)

    def player(model: int, strategy: int, mode: Any) -> Any:
        path = str(trained / "run" / "checkpoints" / f"step_{model:05d}") if model else config.model.path
        module, _, renderer = open_model(ModelConfig(path=path, threads=1), 0, None)
        policy = HFPolicy(module, renderer, f"iteration {model}")
        return job.player(policy, strategy, mode) if strategy else policy

    file = folder / "wins.json"
    wins = json.loads(file.read_text()) if file.exists() else {}
    for name, agent in AGENTS.items():
        for side, sides in zip(SIDES, (("agent", "final"), ("final", "agent")), strict=True):
            if f"{name}, {side}" in wins:
                continue
            seats = {
                "agent": Seat(player(*agent), context=config.context),
                "final": Seat(player(ITERATIONS, ITERATIONS, "hybrid"), context=config.context),
            }
            games = job.play(seats, sides, 10_000 + seed, 0, range(GAMES))
            won = [Record.of(list(game.trajectories.values())).winner == side for game in games]
            wins[f"{name}, {side}"] = [int(sum(won)), len(won)]
            file.write_text(json.dumps(wins, indent=1))


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    played = [json.loads((out / f"match-{s}" / "wins.json").read_text()) for s in range(seeds)]
    cells = {
        (name, side): wilson(*np.sum([p[f"{name}, {side}"] for p in played], axis=0))
        for name in AGENTS
        for side in SIDES
    }

    def shown(name: str, side: str) -> str:
        cell = cells[name, side]
        each = ", ".join(f"{100 * p[f'{name}, {side}'][0] / p[f'{name}, {side}'][1]:.0f}" for p in played)
        return f"{100 * cell.mean:.1f} [{100 * cell.ci95[0]:.1f}, {100 * cell.ci95[1]:.1f}] ({each})"

    rows = [[name, *(shown(name, side) for side in SIDES)] for name in AGENTS]
    print(study.table(["against the final agent", "wins as wolves, % (each seed)", "wins as village, %"], rows))

    def panel(axes: Any) -> None:
        names = ["start", *(f"iteration {i}" for i in range(1, ITERATIONS + 1))]
        for side, colour in zip(SIDES, study.COLOURS, strict=False):
            found = [cells[name, side] for name in names]
            means = [100 * cell.mean for cell in found]
            reach = np.array([[100 * abs(cell.mean - end) for end in cell.ci95] for cell in found]).T
            axes.errorbar(range(len(names)), means, reach, color=colour, marker="o", capsize=3, label=f"as {side}")
        axes.set_xticks(range(len(names)), ["start", *map(str, range(1, ITERATIONS + 1))])
        axes.set(title="Werewolf, against the final agent", xlabel="LSPO iteration", ylabel="wins, %")

    study.figure([panel], study.DOCS / "lspo.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "lspo")
    start = args.out / "start"
    if args.run == "start":
        warm_start(start)
    elif args.run:
        kind, seed = args.run.split("-")
        folder, trained = args.out / args.run, args.out / f"train-{seed}"
        if kind == "train":
            from agentgym.trainers import lspo

            study.train(lspo, settings(int(seed), start), folder)
        else:
            matches(int(seed), start, trained, folder)
    else:
        study.run_all(["start"], args)
        study.run_all([f"train-{s}" for s in range(args.seeds)], args)
        study.run_all([f"match-{s}" for s in range(args.seeds)], args)
        report(args.out, args.seeds)


if __name__ == "__main__":
    main()
