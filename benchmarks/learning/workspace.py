"""The workspace beside a context that grows, within the same number of tokens, as the rounds grow.

A question is answered by the first search, then errands put more rounds before the answer. Both contexts begin with
models that have learned from episodes with one errand at most, and are tuned (the seeds) on up to four; then they are
tried with up to sixteen. The agent with the growing context replies as usual, without a report. Prints the table and
draws the picture of docs/learning.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import study

from agentgym.config import load, overlay

CONTEXTS = {"workspace": ("workspace", "report"), "append": ("appending context", "react")}
LIMIT = 512
TRAINED = 4
ERRANDS = (0, 2, 4, 8, 16)
EPISODES = 100


def settings(context: str, errands: tuple[int, int]) -> dict[str, Any]:
    """Of a warm start."""
    changes = {
        "env": {
            "id": "research_tasks:study/Errands-v0",
            "kwargs": {"errands": list(errands), "max_rounds": 24},
            "eval_options": {"split": "dev"},
        },
        "rollout": {
            "context": context,
            "codec": CONTEXTS[context][1],
            "max_turns": 24,
            "max_new_tokens": 80,
            "context_limit": LIMIT,
        },
    }
    return overlay(load(study.CONFIGS / "iterresearch_sft.yaml"), changes)


def learn(context: str, seed: int, start: Path, folder: Path) -> None:
    """Tune on more errands, and try with more still."""
    from agentgym.trainers import sft

    from agentgym.env_worker import EnvConfig
    from agentgym.evaluate import evaluate
    from agentgym.learner.setup import ModelConfig, open_model
    from agentgym.policies.hf import HFPolicy
    from agentgym.types import Status

    changes = {
        "model": {"path": str(start / "run" / "final"), "threads": 1},
        "optim": {"lr": 5e-4, "warmup_steps": 10},
        "demonstrations": 1024,
        "epochs": 1,
        "seed": seed,
        "eval": {"final_episodes": EPISODES},
    }
    tuned = overlay(settings(context, (0, TRAINED)), changes)
    study.train(sft, tuned, folder)
    config = sft.make_config(tuned)
    module, _, renderer = open_model(ModelConfig(path=str(folder / "run" / "final"), threads=1), 0, None)
    found = {}
    for errands in ERRANDS:
        env = EnvConfig(config.env.id, {**config.env.kwargs, "errands": [errands, errands]})
        with env.pool() as pool:
            policy = HFPolicy(module, renderer, context)
            result, played = evaluate(pool, policy, config.rollout, EPISODES, 1, {"split": "dev"})
        full = sum(t.status is Status.CONTEXT_FULL for t in played) / len(played)
        longest = max(len(s) for t in played for s in t.segments)
        found[errands] = {"success": result.success.mean, "full": full, "longest": longest}
    (folder / "by_errands.json").write_text(json.dumps(found, indent=1))


def report(out: Path, seeds: int) -> None:
    """Print the table and draw the picture."""
    found = {
        context: [json.loads((out / f"{context}-{s}" / "by_errands.json").read_text()) for s in range(seeds)]
        for context in CONTEXTS
    }

    def values(context: str, errands: int, key: str) -> np.ndarray:
        return np.array([run[str(errands)][key] for run in found[context]])

    rows = []
    for errands in ERRANDS:
        ours, theirs = (values(context, errands, "success") for context in CONTEXTS)
        cells = [study.percent(ours), study.percent(theirs), study.percent(ours - theirs)]
        longest = [f"{values(context, errands, 'longest').max():.0f}" for context in CONTEXTS]
        full = f"{100 * values('append', errands, 'full').mean():.0f}"
        rows.append([f"{errands}", *cells, *longest, full])
    names = [name for name, _ in CONTEXTS.values()]
    head = ["errands", *(f"{n}, %" for n in names), "difference", *(f"longest {n}" for n in names), "full, %"]
    print(study.table(head, rows))

    def panel(axes: Any) -> None:
        for colour, (context, (name, _)) in zip(study.COLOURS, CONTEXTS.items(), strict=False):
            cells = [study.interval(values(context, errands, "success")) for errands in ERRANDS]
            mean, half = np.array(cells).T
            axes.plot(ERRANDS, mean, color=colour, marker="o", label=name)
            axes.fill_between(ERRANDS, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        axes.axvline(TRAINED, color="#999999", linestyle=":", label="most in training")
        axes.set(title=f"Research within {LIMIT} tokens", xlabel="errands before the answer", ylabel="success")

    study.figure([panel], study.DOCS / "workspace.png")


def main() -> None:
    """Run what is missing and report."""
    args = study.arguments(__doc__, "workspace")
    if args.run and args.run.startswith("start"):
        from agentgym.trainers import sft

        study.train(sft, settings(args.run.removeprefix("start-"), (0, 1)), args.out / args.run)
    elif args.run:
        context, seed = args.run.split("-")
        learn(context, int(seed), args.out / f"start-{context}", args.out / args.run)
    else:
        study.run_all([f"start-{context}" for context in CONTEXTS], args)
        study.run_all([f"{context}-{s}" for s in range(args.seeds) for context in CONTEXTS], args)
        report(args.out, args.seeds)


if __name__ == "__main__":
    main()
