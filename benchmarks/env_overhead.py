"""A step of our text environments beside a step of the bare engine.

Both sides play the same games with the same commands, drawn from the admissible ones by a seeded generator,
in turn, and must show the same text. A ratio above 1 means that ours is faster.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from agentgym.envs.textworld import TextWorldEnv, make_games
from agentgym.envs.textworld_express import TextWorldExpressEnv

Reset = Callable[[int], tuple[str, list[str]]]
Step = Callable[[str], tuple[str, list[str], bool]]


def ours(env: Any) -> tuple[Reset, Step]:
    """The Gymnasium API, cut down to text, commands and whether the game is over."""

    def reset(seed: int) -> tuple[str, list[str]]:
        text, info = env.reset(seed=seed)
        return text.removeprefix(info["task"]).strip(), info["admissible_commands"]

    def step(command: str) -> tuple[str, list[str], bool]:
        text, _, terminated, truncated, info = env.step(command)
        return text, info["admissible_commands"], terminated or truncated

    return reset, step


def express_engine(game: str) -> tuple[Reset, Step, Callable[[], None]]:
    """The stock environment of the textworld_express package."""
    import textworld_express

    env = textworld_express.TextWorldExpressEnv(envStepLimit=10**6)
    env.load(game, "")

    def reset(seed: int) -> tuple[str, list[str]]:
        text, info = env.reset(seed=seed, gameFold="train")
        return text.strip(), sorted(set(info["validActions"]))

    def step(command: str) -> tuple[str, list[str], bool]:
        text, _, done, info = env.step(command)
        return text.strip(), sorted(set(info["validActions"])), done

    return reset, step, env.close


def textworld_engine(challenge: str, games: int) -> tuple[Reset, Step, Callable[[], None]]:
    """``textworld.start`` with the same information asked for."""
    import textworld

    infos = textworld.EnvInfos(
        feedback=True, objective=True, score=True, max_score=True, won=True, lost=True, admissible_commands=True
    )
    folders = make_games(challenge, n_games=games)
    envs = [textworld.start(str(folder / "game.z8"), infos) for folder in folders]
    current = envs[0]

    def words(text: str) -> str:
        return " ".join(text.split("\n>")[0].split("Would you like to RESTART")[0].split())

    def reset(seed: int) -> tuple[str, list[str]]:
        nonlocal current
        current = envs[seed % games]
        state = current.reset()
        return words(state.feedback.partition(state.objective)[2]), list(state.admissible_commands)

    def step(command: str) -> tuple[str, list[str], bool]:
        state, _, done = current.step(command)
        return words(state.feedback), list(state.admissible_commands), done

    def close() -> None:
        for env in envs:
            env.close()

    return reset, step, close


def play(reset: Reset, step: Step, seeds: range, cap: int) -> tuple[list[str], int, float, float]:
    """Play one game a seed: the texts, the number of steps, the seconds in resets and in steps."""
    texts, count, in_reset, in_step = [], 0, 0.0, 0.0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        start = time.perf_counter()
        text, commands = reset(seed)
        in_reset += time.perf_counter() - start
        texts.append(text)
        for _ in range(cap):
            command = commands[rng.integers(len(commands))]
            start = time.perf_counter()
            text, commands, done = step(command)
            in_step += time.perf_counter() - start
            count += 1
            texts.append(text)
            if done:
                break
    return [" ".join(text.split()) for text in texts], count, in_reset, in_step


def compare(name: str, mine: tuple[Reset, Step], raw: tuple[Reset, Step], games: int, cap: int) -> None:
    """Alternate both sides five times after one round of warming up; print the medians."""
    rows: dict[str, list[tuple[float, float]]] = {"ours": [], "raw": []}
    for round_ in range(6):
        texts = {}
        for side, (reset, step) in (("ours", mine), ("raw", raw)):
            texts[side], count, in_reset, in_step = play(reset, step, range(games), cap)
            if round_:
                rows[side].append((in_step / count * 1e6, in_reset / games * 1e3))
        if texts["ours"] != texts["raw"]:
            differ = next((a, b) for a, b in zip(texts["ours"], texts["raw"], strict=False) if a != b)
            raise SystemExit(f"{name}: the texts differ: {differ}")
    (step_us, reset_ms), (raw_us, raw_ms) = (np.median(rows[side], axis=0) for side in ("ours", "raw"))
    print(
        f"{name:28s} same text; step {step_us:6.0f} us ({1e6 / step_us:6.0f}/s), raw {raw_us:6.0f} us, "
        f"ratio {raw_us / step_us:5.2f}; reset {reset_ms:5.1f} ms, raw {raw_ms:5.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=20, help="games a side and round")
    parser.add_argument("--cap", type=int, default=30, help="steps a game")
    parser.add_argument("--only", default="", help="part of a name")
    args = parser.parse_args()
    for game in ("coin", "cookingworld", "twc", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder"):
        name = f"TextWorldExpress {game}"
        if args.only in name:
            env = TextWorldExpressEnv(game, max_steps=10**6)
            *raw, close = express_engine(game)
            compare(name, ours(env), (raw[0], raw[1]), args.games, args.cap)
            env.close()
            close()
    for challenge in ("coin", "treasure", "cooking"):
        name = f"TextWorld {challenge}"
        if args.only in name:
            games = min(args.games, 4)
            *raw, close = textworld_engine(challenge, games)
            world = TextWorldEnv(challenge, n_games=games, max_steps=10**6)
            compare(name, ours(world), (raw[0], raw[1]), games, args.cap)
            world.close()
            close()


if __name__ == "__main__":
    main()
