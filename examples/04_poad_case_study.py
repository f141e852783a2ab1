"""POAD's case study: which word of an action gets the credit?

A microwave with three states: it must be opened, the pancake put in, and closed, in five steps at most (reward 1, else
-1). The behaviour is uniformly random and only a critic is trained, on every prefix of every action. The credit of an
action lies on the word that decides, its first one; the words that follow from it get none. With tokens as turns (NTPO)
the length of an action counts too: in the closed microwave, where the future is bad, putting the pancake in looks good,
because its six words put the future off.

    python examples/04_poad_case_study.py --out runs/case_study
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from agentgym.trainers import poad

ACTIONS = ("open the microwave", "put the pancake in the microwave", "close the microwave")
STATES = ("closed", "open", "open, pancake inside")
LONGEST = 5


def play(rng: np.random.Generator) -> tuple[list[tuple[int, int]], float]:
    """An episode of uniformly random actions: (state, action) of each step, and the reward at its end."""
    state, steps = 0, []
    while len(steps) < LONGEST:
        action = int(rng.integers(3))
        steps.append((state, action))
        if (state, action) == (2, 2):
            return steps, 1.0
        state = {(0, 0): 1, (1, 1): 2, (1, 2): 0}.get((state, action), state)
    return steps, -1.0


def learn(algo: poad.Algo, episodes: int, seed: int) -> dict[tuple[int, str], np.ndarray]:
    """Train a table of values on every prefix; return the mean advantage of every word of every action."""
    rng = np.random.default_rng(seed)
    values: dict[tuple[int, str], float] = {}
    sums: dict[tuple[int, str], np.ndarray] = {}
    counts: dict[tuple[int, str], int] = {}
    for episode in range(episodes):
        steps, reward = play(rng)
        words = [ACTIONS[action].split() for _, action in steps]
        prefixes = [(s, " ".join(w[:j])) for (s, _), w in zip(steps, words, strict=True) for j in range(len(w))]
        rewards = np.zeros(len(prefixes))
        rewards[-1] = reward
        table = np.array([values.get(prefix, 0.0) for prefix in prefixes])
        advantages, targets = poad.token_advantages(algo, rewards, table, [len(w) for w in words])
        for prefix, target in zip(prefixes, targets, strict=True):
            old = values.get(prefix, 0.0)
            values[prefix] = old + 0.02 * (float(target) - old)
        if episode >= episodes // 2:
            for (state, action), part in zip(
                steps, np.split(advantages, np.cumsum([len(w) for w in words])), strict=False
            ):
                key = (state, ACTIONS[action])
                sums[key] = sums.get(key, np.zeros(len(part))) + part
                counts[key] = counts.get(key, 0) + 1
    return {key: total / counts[key] for key, total in sums.items()}


def draw(found: dict[str, dict[tuple[int, str], np.ndarray]], file: Path) -> None:
    """A panel for every state and method: the advantage of every word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(len(STATES), len(found), sharey=True)
    for column, (method, advantages) in enumerate(found.items()):
        for row, state in enumerate(STATES):
            ax, at, labels = axes[row, column], 0, []
            for action, colour in zip(ACTIONS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
                part = advantages[row, action]
                ax.bar(range(at, at + len(part)), part, color=colour)
                labels += action.split()
                at += len(part)
            ax.axhline(0, color="black", linewidth=0.5)
            ax.set_xticks(range(at), labels, rotation=60, fontsize=8)
            ax.set_title(f"{method}; microwave {state}", fontsize=9)
        axes[1, 0].set_ylabel("mean advantage of a word")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Learn with both methods, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/case_study")
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = {
        name: learn(poad.Algo(method=name, gamma=0.95, lam=0.95), args.episodes, args.seed) for name in ("poad", "ntpo")
    }
    for name, advantages in found.items():
        for (state, action), part in sorted(advantages.items()):
            print(f"{name}  {STATES[state]:<21} {action:<34} {' '.join(f'{a:+.3f}' for a in part)}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "case_study.png")
    print(out / "case_study.png")


if __name__ == "__main__":
    main()
