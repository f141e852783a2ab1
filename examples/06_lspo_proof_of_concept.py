"""LSPO's proof of concept: a larger action space makes the equilibrium stronger. And CFR on Kuhn poker.

In rock, paper, scissors, Spock, lizard an agent that knows the first 3, 4 or 5 actions learns by regret matching
against itself, from random regrets; what it finds is measured in the full game. Knowing three actions it plays a third
each, and loses a third of a point a game to whoever knows them all; so it does with four, now never playing rock; with
five it cannot be exploited. Beside it stands the strategy of a language model that the paper reports.

Then Kuhn poker, where one half of an exact solution is known on paper: the first player bets a jack with some α up to
1/3, a king with 3α, never a queen, and calls with a queen with α + 1/3.

    python examples/06_lspo_proof_of_concept.py
"""

from __future__ import annotations

import argparse

import numpy as np

from agentgym.cfr import CFR, cfr_plus, expected_values, exploitability
from agentgym.game_tree import Tree
from agentgym.games import RPSSL_NAMES, Kuhn, rpssl

LANGUAGE_MODEL = (0.53, 0.29, 0.14, 0.02, 0.02)


def show(label: str, mixed: np.ndarray) -> None:
    """A strategy of the full game, and how much a best answer wins against it."""
    tree = Tree(rpssl())
    lost = exploitability(tree, tree.table({0: mixed, 1: mixed}))
    print(f"{label:<16} {'  '.join(f'{p:8.3f}' for p in mixed)}  {lost:14.3f}")


def main() -> None:
    """Solve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)

    print(f"{'':<16} {'  '.join(f'{name:>8}' for name in RPSSL_NAMES)}  exploitability")
    show("language model", np.array(LANGUAGE_MODEL))
    for actions in (3, 4, 5):
        solver = CFR(Tree(rpssl(actions)))
        solver.regrets += rng.normal(0, 10, solver.regrets.shape)
        for _ in range(args.iterations):
            solver.step()
        show(f"{actions} actions", np.pad(solver.average()[0], (0, 5 - actions)))

    tree = Tree(Kuhn())
    solver = cfr_plus(tree)
    for _ in range(1000):
        solver.step()
    print("\nKuhn poker, CFR+ after 1000 iterations: probability to bet or call")
    for (seat, card, history), probabilities in sorted(tree.policy(solver.average()).items()):
        played = ", ".join(("pass", "bet")[action] for action in history) or "first move"
        print(f"  player {seat + 1}, {'JQK'[card]}, {played:<10}  {probabilities[1]:.3f}")
    value = expected_values(tree, solver.average())[0]
    print(f"value {value:.5f} (exact: −1/18 = −0.05556), exploitability {exploitability(tree, solver.average()):.6f}")


if __name__ == "__main__":
    main()
