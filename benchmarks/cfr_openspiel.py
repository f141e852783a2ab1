"""CFR beside OpenSpiel: nodes a second of external sampling, and exploitability over iterations.

Nodes. Our external sampling and OpenSpiel's Python solver play Kuhn and Leduc poker in turns, in one process, and CPU
seconds are measured. Then both are run once more from the same seeds with a counter at every history they visit
(chance and ends count too); the tables of both runs must be equal. NashConv is that of the average strategy at the end,
each measured by its own library.

Forwards. Decisions a second of Deep CFR in Leduc with 512 traversals that share forwards, and with one at a time.

Curves. CFR, CFR+ and external sampling of both, into docs/learning/cfr.png. OpenSpiel's are those of its C++ solvers,
to save time; its CFR updates the seats in turns, so ours does here.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyspiel
import torch
from learning.study import COLOURS, figure
from open_spiel.python.algorithms import exploitability
from open_spiel.python.algorithms.external_sampling_mccfr import ExternalSamplingSolver

from agentgym.cfr import CFR, ExternalSampling, cfr_plus, nash_conv
from agentgym.cfr_search import Game
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.game_tree import Tree
from agentgym.games import Kuhn, Leduc, State

GAMES: Mapping[str, Callable[[], State]] = {"kuhn_poker": Kuhn, "leduc_poker": Leduc}
Points = list[tuple[int, float]]


class Counted(ExternalSampling):
    """Ours, with a counter at every history."""

    nodes = 0

    def _visit(self, node: Any, seat: int) -> float:
        self.nodes += 1
        return super()._visit(node, seat)


class CountedSpiel(ExternalSamplingSolver):
    """OpenSpiel's, with a counter at every history."""

    nodes = 0

    def _update_regrets(self, state: Any, player: int) -> float:
        self.nodes += 1
        return super()._update_regrets(state, player)


def cpu(work: Callable[[], None], times: int) -> float:
    """CPU seconds of calls."""
    started = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - started


def nodes_per_second(name: str, iterations: int, rounds: int) -> None:
    """Time both solvers in turns, count their nodes, print."""
    game, tree = pyspiel.load_game(name), Tree(GAMES[name]())
    np.random.seed(0)  # noqa: NPY002 -- OpenSpiel draws from the global generator.
    theirs, ours = ExternalSamplingSolver(game), ExternalSampling(GAMES[name]())
    seconds = np.array([[cpu(theirs.iteration, iterations), cpu(ours.step, iterations)] for _ in range(rounds)])

    np.random.seed(0)  # noqa: NPY002
    their_count, our_count = CountedSpiel(game), Counted(GAMES[name]())
    cpu(their_count.iteration, iterations * rounds)
    cpu(our_count.step, iterations * rounds)
    assert our_count.rows == ours.rows
    assert all(np.array_equal(row, theirs._infostates[key]) for key, row in their_count._infostates.items())

    nodes = np.array([their_count.nodes, our_count.nodes]) / rounds
    speeds = nodes / seconds
    ratio = speeds[:, 1] / speeds[:, 0]
    quality = exploitability.nash_conv(game, theirs.average_policy()), nash_conv(tree, tree.table(ours.average()))
    print(f"{name}, {rounds} rounds of {iterations} iterations:")
    for who, n, speed, conv in zip(("OpenSpiel", "agentgym"), nodes, np.median(speeds, 0), quality, strict=True):
        print(f"  {who:<9}  {n / iterations:6.1f} nodes an iteration  {speed:10,.0f} nodes/s  NashConv {conv:.4f}")
    print(f"  ratio {np.median(ratio):.1f}x  (rounds: {', '.join(f'{r:.1f}' for r in ratio)})", flush=True)


def forwards(traversals: int) -> None:
    """Decisions a second with and without shared forwards, with networks of the default size."""
    game = Game(Leduc(), seats=2, actions=3, inputs=30, roles=2)
    trained = DeepCFR(game, DeepCFRConfig(traversals=100, steps=20, batch=256))
    trained.step()
    speeds = {}
    for concurrent in (1, 512):
        solver = DeepCFR(game, DeepCFRConfig(traversals=traversals, concurrent=concurrent))
        solver.nets = trained.nets
        seconds = cpu(solver.traverse, 1)
        speeds[concurrent] = solver.decisions / seconds
    print(
        f"Deep CFR, Leduc: {speeds[1]:,.0f} decisions/s one at a time, {speeds[512]:,.0f} shared: "
        f"{speeds[512] / speeds[1]:.1f}x",
        flush=True,
    )


def curve(step: Callable[[], Any], measure: Callable[[], float], last: int) -> Points:
    """Exploitability after 1, 2, 3, 6, 10, … iterations."""
    points, done = [], 0
    for at in np.unique(np.geomspace(1, last, 1 + 4 * round(np.log10(last))).round().astype(int)):
        for _ in range(at - done):
            step()
        done = at
        points.append((int(at), measure() / 2))
    return points


def curves(name: str, last: int, sampled: int, seeds: int) -> dict[tuple[str, str], Points]:
    """Of every method and library: exploitability over iterations; the mean over seeds for external sampling."""
    game, tree = pyspiel.load_game(name), Tree(GAMES[name]())
    found: dict[tuple[str, str], Points] = {}

    def theirs(solver: Any, step: Callable[[], Any], until: int) -> Points:
        return curve(step, lambda: pyspiel.nash_conv(game, solver.average_policy(), True), until)

    for method, ours, spiel in (
        ("CFR", CFR(tree, alternating=True), pyspiel.CFRSolver(game)),
        ("CFR+", cfr_plus(tree), pyspiel.CFRPlusSolver(game)),
    ):
        found[method, "agentgym"] = curve(ours.step, lambda s=ours: nash_conv(tree, s.average()), last)  # type: ignore[misc]
        found[method, "OpenSpiel"] = theirs(spiel, spiel.evaluate_and_update_policy, last)
    own, other = [], []
    for seed in range(seeds):
        mine, spiel = ExternalSampling(GAMES[name](), seed=seed), pyspiel.ExternalSamplingMCCFRSolver(game, seed)
        own.append(curve(mine.step, lambda s=mine: nash_conv(tree, tree.table(s.average())), sampled))  # type: ignore[misc]
        other.append(theirs(spiel, spiel.run_iteration, sampled))
    for who, runs in (("agentgym", own), ("OpenSpiel", other)):
        found["external sampling", who] = [(int(n), float(e)) for n, e in np.mean(runs, 0)]
    return found


def draw(found: dict[str, dict[tuple[str, str], Points]], path: Path) -> None:
    """A panel for each game: ours as lines, OpenSpiel's as circles."""

    def panel(name: str) -> Callable[[Any], None]:
        def fill(axes: Any) -> None:
            for (method, who), points in found[name].items():
                colour = COLOURS[("CFR", "CFR+", "external sampling").index(method)]
                style = (
                    {"color": colour}
                    if who == "agentgym"
                    else {"color": colour, "marker": "o", "ls": "", "mfc": "none"}
                )
                axes.plot(*zip(*points, strict=True), label=f"{method}, {who}", ms=5, **style)
            axes.set(xscale="log", yscale="log", xlabel="iterations", title=name.replace("_", " ").capitalize())
            axes.set_ylabel("exploitability (antes a game)")

        return fill

    figure([panel(name) for name in found], path)


def main() -> None:
    """Measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each solver (default: 5)")
    parser.add_argument("--iterations", type=int, default=2000, help="iterations a round (default: 2000)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of external sampling in the figure (default: 5)")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "learning" / "cfr.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # What was imported (torch above all) is not collected again while either side is timed.
    for name in GAMES:
        nodes_per_second(name, args.iterations, args.rounds)
    forwards(traversals=200)
    found = {name: curves(name, last=1000, sampled=10_000, seeds=args.seeds) for name in GAMES}
    draw(found, args.figure)
    for name, lines in found.items():
        for (method, who), points in lines.items():
            print(f"{name:<12} {method:<18} {who:<10} exploitability {points[-1][1]:.6f} after {points[-1][0]}")
    print(args.figure)


if __name__ == "__main__":
    main()
