"""ALFWorld steps: ours beside the alfworld package, with the same games and commands, in turns.

    make bench-alfworld

The package runs in a Python environment of its own, ``.venv-alfworld``. Its games are played as it plays them
(textworld's PDDL environment in the package's wrappers, without its expert), but without the processes and pipes of its
batches. Commands are drawn from the admissible ones; then comes the walkthrough. That both sides say the same,
observations, admissible commands and success, is checked outside the measured time; a difference ends the run.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STOCK = ROOT / ".venv-alfworld" / "bin" / "python"
SAMPLE = ROOT / "tests" / "data" / "alfworld_sample.jsonl.xz"


def play(reset: Callable[[], Any], step: Callable[[str], Any], commands: list[str]) -> tuple[list[float], list[Any]]:
    """CPU and wall seconds of the start, and of all steps; what came back."""
    clocks = [(time.process_time(), time.perf_counter())]
    said = [reset()]
    clocks.append((time.process_time(), time.perf_counter()))
    said += [step(command) for command in commands]
    clocks.append((time.process_time(), time.perf_counter()))
    return [after[k] - before[k] for before, after in itertools.pairwise(clocks) for k in (0, 1)], said


def stock() -> Callable[[dict[str, Any]], tuple[list[float], list[Any]]]:
    """The package's player."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos

    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])

    def run(order: dict[str, Any]) -> tuple[list[float], list[Any]]:
        with tempfile.NamedTemporaryFile("w", suffix=".tw-pddl") as file:
            json.dump(order["game"], file)
            file.flush()
            env: Any = None

            def reset() -> Any:
                nonlocal env
                env = textworld.start(file.name, infos, [AlfredDemangler(shuffle=False), AlfredInfos])
                return env.reset()

            times, states = play(reset, lambda command: env.step(command)[0], order["commands"])
        return times, [(s.feedback, s["admissible_commands"], s["won"]) for s in states]

    return run


def ours() -> Callable[[dict[str, Any]], tuple[list[float], list[Any]]]:
    """Our player."""
    from agentgym.envs.alfworld import ALFWorldEnv

    env = ALFWorldEnv(max_steps=10_000)

    def run(order: dict[str, Any]) -> tuple[list[float], list[Any]]:
        options = {"split": order["split"]}
        times, said = play(lambda: env.reset(seed=order["seed"], options=options), env.step, order["commands"])
        return times, [(s[0], s[-1]["admissible_commands"], s[-1]["success"]) for s in said]

    return run


def serve(side: str) -> None:
    """Play the games that come in, one a line."""
    lines, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the package prints is no answer
    run = {"stock": stock, "ours": ours}[side]()
    for line in lines:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


def orders(split: str, count: int, steps: int) -> list[dict[str, Any]]:
    """Games of a split with commands for each: random ones, then the walkthrough as far as it goes."""
    from agentgym.envs import alfworld_games
    from agentgym.envs.alfworld import ALFWorldEnv
    from agentgym.envs.alfworld_text import GOAL

    env, made = ALFWorldEnv(split, max_steps=10_000), []
    games = alfworld_games.games(None, alfworld_games.official_split(split), alfworld_games.task_types(None))
    for seed, game in enumerate(games[:count]):
        rng = random.Random(game.id)
        _, info = env.reset(seed=seed)
        commands: list[str] = []
        for turn in range(steps + len(game.walkthrough)):
            choices = info["admissible_commands"]
            if turn % 3:
                choices = [c for c in choices if not c.startswith("go to")]
            rest = turn - steps
            commands.append(game.walkthrough[rest] if rest >= 0 else rng.choice([*choices, "open sesame"]))
            *_, terminated, _, info = env.step(commands[-1])
            if terminated:
                break
        grammar = game.grammar.replace(GOAL, game.goal)
        content = {"pddl_domain": game.domain, "grammar": grammar, "pddl_problem": game.problem, "solvable": True}
        made.append({"split": split, "seed": seed, "commands": commands, "game": content, "id": game.id})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=6, help="games of a split")
    parser.add_argument("--steps", type=int, default=25, help="random commands a game")
    parser.add_argument("--serve", choices=("stock", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    if not STOCK.exists():
        sys.exit(f"error: {STOCK} is not there: run `make bench-alfworld`")
    os.environ.setdefault("ALFWORLD_DATA", str(SAMPLE))
    games = [order for split in ("train", "dev", "test") for order in orders(split, args.games, args.steps)]
    sides = {
        side: subprocess.Popen(
            [python, __file__, "--serve", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for side, python in (("stock", str(STOCK)), ("ours", sys.executable))
    }
    print(f"{len(games) - 1} games of {os.environ['ALFWORLD_DATA']}, load {os.getloadavg()[0]:.1f}")
    totals = {side: [0.0] * 4 for side in sides}
    steps = 0
    for place, order in enumerate(games):  # the first one warms up
        said = {}
        for side, process in sides.items():
            assert process.stdin
            assert process.stdout
            print(json.dumps(order), file=process.stdin, flush=True)
            times, said[side] = json.loads(process.stdout.readline())
            if place:
                totals[side] = [total + spent for total, spent in zip(totals[side], times, strict=True)]
        for turn, (theirs, mine) in enumerate(zip(said["stock"], said["ours"], strict=True)):
            if theirs != mine:
                sys.exit(f"{order['id']}, after {order['commands'][:turn]}:\nstock {theirs}\nours  {mine}")
        steps += len(order["commands"]) * bool(place)
    for process in sides.values():
        process.communicate()
    print(f"the same observations, admissible commands and success in {steps} steps")
    print(f"{'':24s}{'stock':>10s}{'ours':>10s}{'ratio':>8s}")
    rows = (
        ("CPU ms a step", 2, steps),
        ("wall ms a step", 3, steps),
        ("CPU ms a start", 0, 0),
        ("wall ms a start", 1, 0),
    )
    for name, column, divisor in rows:
        theirs, mine = (1e3 * totals[side][column] / (divisor or len(games) - 1) for side in ("stock", "ours"))
        print(f"{name:24s}{theirs:10.2f}{mine:10.2f}{theirs / mine:8.1f}")


if __name__ == "__main__":
    main()
