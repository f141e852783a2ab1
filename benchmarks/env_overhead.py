"""A step of our environments beside a step of the bare engine.

Both sides play the same games with the same commands, drawn by a seeded generator, in turn, and must show the same:
text in TextWorld and TextWorldExpress (with admissible commands on both sides), text and score in ScienceWorld (the
commands are the engine's own solutions), image and success in BabyAI, whose engine makes no words: the time to make
ours is given apart. CPU time is that of this thread in steps; where there is Java, that of both processes in steps
and resets.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs import babyai, scienceworld, textworld_express
from agentgym.envs.babyai import COMMANDS, FIRST_SEED, BabyAIEnv, tell
from agentgym.envs.scienceworld import ScienceWorldEnv
from agentgym.envs.textworld import TextWorldEnv, make_games
from agentgym.envs.textworld_express import TextWorldExpressEnv

Reset = Callable[[int], tuple[Any, list[str]]]
Step = Callable[[str], tuple[Any, list[str], bool]]
Side = tuple[Reset, Step]


def cpu(java: list[int]) -> float:
    """CPU seconds of this process and of these others."""
    ticks = 0
    for pid in java:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def play(side: Side, seeds: range, cap: int) -> tuple[list[Any], int, float, float, float]:
    """Play one game a seed: what was shown, number of steps, seconds in resets and in steps, CPU seconds in steps."""
    reset, step = side
    shown, count, in_reset, in_step, busy = [], 0, 0.0, 0.0, 0.0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        start = time.perf_counter()
        observation, commands = reset(seed)
        in_reset += time.perf_counter() - start
        shown.append(observation)
        for _ in range(cap):
            command = commands[rng.integers(len(commands))]
            start, start_cpu = time.perf_counter(), time.thread_time()
            observation, commands, done = step(command)
            busy += time.thread_time() - start_cpu
            in_step += time.perf_counter() - start
            count += 1
            shown.append(observation)
            if done:
                break
    return shown, count, in_reset, in_step, busy


def compare(
    name: str,
    mine: Side,
    raw: Side,
    games: int,
    cap: int,
    java: tuple[list[int], list[int]],
    tell_raw: Callable[[list[Any]], list[Any]] = list,
) -> None:
    """Play both sides in turn, eight times after two rounds of warming up; print the medians.

    Args:
        name: What the line is called.
        mine: Our side.
        raw: The engine's.
        games: Games a side and round.
        cap: Steps a game.
        java: Processes of our side and of the engine's.
        tell_raw: What the engine showed, as our side shows it; not measured.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {"ours": [], "raw": []}
    for round_ in range(10):
        shown = {}
        sides = [("ours", mine, java[0]), ("raw", raw, java[1])]
        for label, side, processes in sides if round_ % 2 else reversed(sides):
            before = cpu(processes)
            shown[label], count, in_reset, in_step, busy = play(side, range(games), cap)
            spent = cpu(processes) - before if processes else busy
            if round_ > 1:
                rows[label].append((in_step / count * 1e6, in_reset / games * 1e3, spent / count * 1e6))
        shown["raw"] = tell_raw(shown["raw"])
        if shown["ours"] != shown["raw"]:
            differ = next((a, b) for a, b in zip(shown["ours"], shown["raw"], strict=False) if a != b)
            raise SystemExit(f"{name}: the two differ: {differ}")
    (step_us, reset_ms, cpu_us), (raw_us, raw_ms, raw_cpu) = (np.median(rows[side], axis=0) for side in rows)
    print(
        f"{name:32s} {count:4d} same steps; step {step_us:6.0f} us, raw {raw_us:6.0f} us, ours / raw "
        f"{step_us / raw_us:5.3f}; cpu {cpu_us:6.0f} us, raw {raw_cpu:6.0f} us, ours / raw {cpu_us / raw_cpu:5.3f}; "
        f"reset {reset_ms:6.2f} ms, raw {raw_ms:6.2f} ms",
        flush=True,
    )


def words(text: str) -> str:
    return " ".join(text.split())


# ---- TextWorldExpress and TextWorld: text and admissible commands -----------------------------------------


def text_side(env: Any) -> Side:
    """The Gymnasium API, cut down to text, commands and whether the game is over."""

    def reset(seed: int) -> tuple[str, list[str]]:
        text, info = env.reset(seed=seed)
        return words(text.removeprefix(info["task"])), info["admissible_commands"]

    def step(command: str) -> tuple[str, list[str], bool]:
        text, _, terminated, truncated, info = env.step(command)
        return words(text), info["admissible_commands"], terminated or truncated

    return reset, step


def express(game: str, games: int, cap: int) -> None:
    """Beside the stock environment of the textworld_express package."""
    import textworld_express as stock

    engine = stock.TextWorldExpressEnv(envStepLimit=10**6)
    engine.load(game, "")

    def reset(seed: int) -> tuple[str, list[str]]:
        text, info = engine.reset(seed=seed, gameFold="train")
        return words(text), sorted(set(info["validActions"]))

    def step(command: str) -> tuple[str, list[str], bool]:
        text, _, done, info = engine.step(command)
        return words(text), sorted(set(info["validActions"])), done

    env = TextWorldExpressEnv(game, max_steps=10**6)
    java = [textworld_express.ENGINE.current.process.pid], [engine._gateway.java_process.pid]
    compare(f"TextWorldExpress {game}", text_side(env), (reset, step), games, cap, java)
    env.close()
    engine.close()


def textworld(challenge: str, games: int, cap: int) -> None:
    """Beside ``textworld.start`` with the same information asked for."""
    import textworld as stock

    games = min(games, 4)
    infos = stock.EnvInfos(
        feedback=True, objective=True, score=True, max_score=True, won=True, lost=True, admissible_commands=True
    )
    folders = make_games(challenge, n_games=games)
    engines = [stock.start(str(folder / "game.z8"), infos) for folder in folders]
    current = engines[0]

    def clean(text: str) -> str:
        return words(text.split("\n>")[0].split("Would you like to RESTART")[0])

    def reset(seed: int) -> tuple[str, list[str]]:
        nonlocal current
        current = engines[seed % games]
        state = current.reset()
        return clean(state.feedback.partition(state.objective)[2]), list(state.admissible_commands)

    def step(command: str) -> tuple[str, list[str], bool]:
        state, _, done = current.step(command)
        return clean(state.feedback), list(state.admissible_commands), done

    env = TextWorldEnv(challenge, n_games=games, max_steps=10**6)
    compare(f"TextWorld {challenge}", text_side(env), (reset, step), games, cap, ([], []))
    for engine in (*engines, env):
        engine.close()


# ---- ScienceWorld: text and score -------------------------------------------------------------------------


def solutions(task: str, games: int) -> list[list[str]]:
    """The engine's own solutions of the first games."""
    env = ScienceWorldEnv(task, expert=True, max_steps=10**6)
    found: list[list[str]] = []
    for seed in range(games):
        _, info = env.reset(seed=seed)
        found.append([])
        while info["expert_action"]:
            found[-1].append(info["expert_action"])
            *_, info = env.step(found[-1][-1])
    env.close()
    return found


def science(task: str, games: int, cap: int) -> None:
    """Beside the simulator's own ``step``, ``getScore`` and ``getCompleted``, in the same Java process."""
    games = min(games, 4)
    env = ScienceWorldEnv(task, max_steps=10**6)
    plans = solutions(task, games)
    variations = [env.reset(seed=seed)[1]["variation"] for seed in range(games)]
    jvm = scienceworld.ENGINE.current
    server = jvm.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
    engine_step, engine_score, engine_over = server.step, server.getScore, server.getCompleted

    def planned(reset: Callable[[int], Any], step: Callable[[str], tuple[Any, bool]]) -> Side:
        left: list[str] = []

        def planned_reset(seed: int) -> tuple[Any, list[str]]:
            left[:] = plans[seed][::-1]
            return reset(seed), [left.pop()]

        def planned_step(command: str) -> tuple[Any, list[str], bool]:
            shown, over = step(command)
            return shown, [left.pop()] if left else ["wait1"], over

        return planned_reset, planned_step

    def my_reset(seed: int) -> str:
        text, info = env.reset(seed=seed)
        return words(text.removeprefix(info["task"]))

    def my_step(command: str) -> tuple[Any, bool]:
        text, _, terminated, _, info = env.step(command)
        return (words(text), info["score"]), terminated

    def raw_reset(seed: int) -> str:
        server.load(task, variations[seed], "", False)
        return words(server.step("look around"))

    def raw_step(command: str) -> tuple[Any, bool]:
        text, score, over = engine_step(command), engine_score(), engine_over()
        return (words(text), round(100 * score) / 100), over

    mine, raw = planned(my_reset, my_step), planned(raw_reset, raw_step)
    compare(f"ScienceWorld {task}", mine, raw, games, cap, ([jvm.process.pid], [jvm.process.pid]))
    jvm.gateway.detach(server)
    env.close()


# ---- BabyAI: the image and the success --------------------------------------------------------------------


def baby(level: str, games: int, cap: int) -> None:
    """Beside minigrid's ``step``, which makes an image and no words."""
    env = BabyAIEnv(level)
    engine: Any = gym.make(babyai.levels()[level], disable_env_checker=True).unwrapped
    moves = list(COMMANDS[:-1])
    numbers = {command: number for number, command in enumerate(COMMANDS)}

    def my_reset(seed: int) -> tuple[Any, list[str]]:
        text, info = env.reset(seed=seed)
        return text.removeprefix(info["task"]).strip(), moves

    def my_step(command: str) -> tuple[Any, list[str], bool]:
        text, reward, terminated, truncated, _ = env.step(command)
        return (text, reward), moves, terminated or truncated

    def raw_reset(seed: int) -> tuple[Any, list[str]]:
        observation, _ = engine.reset(seed=FIRST_SEED["train"] + seed)
        return (observation["image"], observation["direction"]), moves

    def raw_step(command: str) -> tuple[Any, list[str], bool]:
        observation, reward, terminated, truncated, _ = engine.step(numbers[command])
        return (observation["image"], observation["direction"], reward > 0), moves, terminated or truncated

    spent: list[float] = []

    def tell_all(shown: list[Any]) -> list[Any]:
        """What we show of these images, and the time that making it takes."""
        start = time.perf_counter()
        told = [tell(image, direction) for image, direction, *_ in shown]
        useful = [babyai._useful(image.tobytes()) for image, *_ in shown]
        spent.append((time.perf_counter() - start) / len(useful) * 1e6)
        return [(text, float(rest[0])) if rest else text for text, (_, _, *rest) in zip(told, shown, strict=True)]

    compare(f"BabyAI {level}", (my_reset, my_step), (raw_reset, raw_step), games, cap, ([], []), tell_all)
    print(f"{'':32s} of which words and commands {np.median(spent):.1f} us a step")


_GAMES = ("coin", "cookingworld", "twc", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder")
_SUITES: dict[str, tuple[Callable[[str, int, int], None], tuple[str, ...]]] = {
    "TextWorldExpress": (express, _GAMES),
    "TextWorld": (textworld, ("coin", "treasure", "cooking")),
    "ScienceWorld": (science, ("find-plant", "boil", "power-component", "grow-plant")),
    "BabyAI": (baby, ("GoToLocal", "PutNextLocal", "BossLevel")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=20, help="games a side and round")
    parser.add_argument("--cap", type=int, default=30, help="steps a game")
    parser.add_argument("--only", default="", help="part of a name")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    for suite, (measure, names) in _SUITES.items():
        for name in names:
            if args.only in f"{suite} {name}":
                measure(name, args.games, args.cap)


if __name__ == "__main__":
    main()
