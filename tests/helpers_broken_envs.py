"""A small environment that does everything right, and others that each break one promise.

They run in the processes that `check_agent_env` starts, driven through gymnasium like any other environment.
"""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError
from agentgym.spaces import UnicodeText

WORDS = ("amber", "blue", "coral", "denim", "ecru", "fawn", "green", "hazel")


class Good(gym.Env[str, str]):
    """Names a colour each round, which is to be said; wrong answers cost a step. Info: admissible_commands, score."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    instructions = "Say the colour that is named."
    rounds, max_steps = 5, 12

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.observation_space = UnicodeText(200)
        self.action_space = UnicodeText()
        self.playing = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.hint = bool((options or {}).get("expert"))
        self.order = [str(word) for word in self.np_random.choice(WORDS, self.rounds)]
        self.score = self.count = 0
        self.playing = True
        return self.text("A new game."), self.info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not self.playing:
            raise ResetNeeded("call reset() before step()")
        self.count += 1
        right = action == self.order[self.score]
        self.score += right
        won, late = self.score == self.rounds, self.count >= self.max_steps
        self.playing = not (won or late)
        return self.text("Right." if right else "No."), float(right), won, late and not won, self.info()

    def text(self, answer: str) -> str:
        return f"{answer} Say {self.order[self.score]}." if self.score < self.rounds else f"{answer} The end."

    def info(self) -> dict[str, Any]:
        found = {"admissible_commands": sorted({*self.order, "pass"}), "score": self.score, "max_score": self.rounds}
        found["success"] = self.score == self.rounds
        if self.hint:
            found["expert_action"] = self.order[self.score] if self.score < self.rounds else None
        return found


class Unseeded(Good):
    def reset(self, *, seed=None, options=None):
        start = super().reset(seed=0, options=options)
        self.order = [str(word) for word in np.random.default_rng(seed or 0).choice(WORDS, self.rounds)]
        return self.text("A new game."), self.info() if start else {}


class Warns(Good):
    def seed(self, seed: int) -> None:
        """What old environments had."""


class LongText(Good):
    def text(self, answer):
        return super().text(answer) + (" and so on" * 50 if self.count == 4 else "")


class NoText(Good):
    def text(self, answer):
        return super().text(answer).encode() if self.count == 4 else super().text(answer)


class Infinite(Good):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("inf") if self.count == 4 else reward, *rest


class HalfTruth(Good):
    def step(self, action):
        observation, reward, won, late, info = super().step(action)
        return observation, reward, int(won) if self.count > 2 else won, late, info


class Opaque(Good):
    def info(self):
        return {**super().info(), "handle": set(WORDS)}


class Documented(Opaque):
    """Its info has a handle: the set of all words."""


class SmallSeeds(Good):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.int32(seed)
        return super().reset(seed=seed, options=options)


class DriftingSeeds(Good):
    def reset(self, *, seed=None, options=None):
        start = super().reset(seed=seed, options=options)
        if seed is not None and seed >= 2**31:
            start[1]["score"] = self.calls = getattr(self, "calls", 0) + 1
        return start


class Moody(Good):
    def text(self, answer):
        return super().text(answer) + (f" {np.random.default_rng().integers(10**12)}" if self.count == 4 else "")


class Counts(Good):
    made = 0

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        Counts.made += 1
        self.number = Counts.made

    def text(self, answer):
        return super().text(answer) + (f" Copy {self.number}." if self.count == 4 else "")


class Hashes(Good):
    def text(self, answer):
        return f"{super().text(answer)} {sorted(WORDS, key=hash)[0]}"


class OneGame(Good):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.order = list(WORDS[: self.rounds])
        return self.text("A new game."), self.info()


class Shared(Good):
    last: Good | None = None

    def reset(self, *, seed=None, options=None):
        Shared.last = self
        return super().reset(seed=seed, options=options)

    def text(self, answer):
        return super().text(answer) + ("" if Shared.last is self else f" Or {Shared.last.order[0]}?")


class Remembers(Good):
    def reset(self, *, seed=None, options=None):
        unfinished = self.playing and self.count >= 3
        observation, info = super().reset(seed=seed, options=options)
        return observation + (" Go on." if unfinished else ""), info


class MovesRandom(Good):
    def step(self, action):
        random.random()
        return super().step(action)


class MovesNumpy(Good):
    def reset(self, *, seed=None, options=None):
        np.random.random()  # noqa: NPY002
        return super().reset(seed=seed, options=options)


class MovesTorch(Good):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.torch = importlib.import_module("torch")

    def step(self, action):
        self.torch.rand(1)
        return super().step(action)


class ReadsRandom(Good):
    def text(self, answer):
        return super().text(answer) + "?" * (random.getstate()[1][1] % 97)


class Lenient(Good):
    def step(self, action):
        if not self.playing and not hasattr(self, "order"):
            return "Not yet.", 0.0, False, False, {}
        return super().step(action)


class Careless(Good):
    def step(self, action):
        if hasattr(self, "order") and not self.playing:
            return self.order[self.max_steps], 0.0, False, False, {}
        return super().step(action)


class Picky(Good):
    def step(self, action):
        action.encode("latin-1")
        return super().step(action)


class Haunted(Good):
    cursed = False

    def step(self, action):
        self.cursed = self.cursed or action == "quit"
        return super().step(action)

    def text(self, answer):
        return f"{super().text(answer)} Boo." if self.cursed else super().text(answer)


class Endless(Good):
    def step(self, action):
        if self.playing and action not in {*self.order, "pass"}:
            self.count -= 1
        return super().step(action)


class NoExpert(Good):
    def info(self):
        found = super().info()
        found.pop("expert_action", None)
        return found


class BadExpert(Good):
    def info(self):
        found = super().info()
        if self.hint and self.score == 4:
            found["expert_action"] = "pass"
        return found


class GivesUp(Good):
    def info(self):
        found = super().info()
        if self.hint and self.score == 4:
            found["expert_action"] = None
        return found


class LowScore(Good):
    def info(self):
        return {**super().info(), "max_score": 6}


class Generous(Good):
    def info(self):
        return {**super().info(), "success": self.score == self.rounds or self.count >= self.max_steps}


class Unasked(Good):
    def info(self):
        return {**super().info(), "expert_action": self.order[self.score] if self.score < self.rounds else None}


class Whispers(Good):
    def text(self, answer):
        return super().text(answer) + (" (psst)" if self.hint and self.count == 2 else "")


class AnswerShown(Good):
    def info(self):
        return {**super().info(), "answer": self.order[0]}


class AnswerHidden(Good):
    def info(self):
        return {**super().info(), "answer": f"xx {self.order[-1]} {self.order[-2]}"}


class FirstIsRight(Good):
    def info(self):
        found = super().info()
        right = self.order[self.score] if self.score < self.rounds else "pass"
        found["admissible_commands"].sort(key=lambda command: command != right)
        return found


class TalkativeExpert(Good):
    def reset(self, *, seed=None, options=None):
        start = super().reset(seed=seed, options=options)
        self.instructions = Good.instructions + (f" The first is {self.order[0]}." if self.hint else "")
        return start


class LeaksMemory(Good):
    kept: list[bytes] = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        self.kept.append(os.urandom(100_000))
        return super().reset(seed=seed, options=options)


class Hoards(Good):
    """Opens something in every reset, and gives it back only when closed."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.opened: list[Any] = []

    def reset(self, *, seed=None, options=None):
        self.opened.append(self.open())
        return super().reset(seed=seed, options=options)

    def close(self):
        for thing in self.opened:
            self.free(thing)
        self.opened = []


class HoardsFiles(Hoards):
    def open(self):
        return open(os.devnull)

    def free(self, thing):
        thing.close()


class HoardsThreads(Hoards):
    def open(self):
        stop = threading.Event()
        threading.Thread(target=stop.wait, daemon=True).start()
        return stop

    def free(self, thing):
        thing.set()


class HoardsProcesses(Hoards):
    def open(self):
        return subprocess.Popen(["sleep", "600"])

    def free(self, thing):
        thing.kill()
        thing.wait()


class LeavesThread(Good):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        threading.Thread(target=threading.Event().wait, daemon=True, name="lingering").start()


class LeavesProcess(Good):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.child = subprocess.Popen(["sleep", "600"])
        warnings.simplefilter("ignore", ResourceWarning)


class LeavesFile(Good):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.file = tempfile.mkstemp(prefix="lingering")
        os.close(self.file[0])


class LeavesOpen(Good):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.number = os.open("/dev/null", os.O_RDONLY)


class ClosesOnce(Good):
    closed = False

    def close(self):
        if self.closed:
            raise RuntimeError("it is closed already")
        self.closed = True


class Dies(Good):
    def step(self, action):
        if action == "restart":
            print("fatal: the engine is gone", file=sys.stderr, flush=True)
            os._exit(7)
        return super().step(action)


class Hangs(Good):
    def step(self, action):
        if action == "restart":
            time.sleep(600)
        return super().step(action)


class Unmakeable(Good):
    def __init__(self, render_mode=None):
        raise RuntimeError("no room")


class Loud(Good):
    def step(self, action):
        print(f"debug {action!r}")
        return super().step(action)


class WithArguments(Good):
    def __init__(self, rounds: int, render_mode=None):
        super().__init__(render_mode)
        self.rounds = rounds

    def reset(self, *, seed=None, options=None):
        self.rounds = (options or {}).get("rounds", self.rounds)
        return super().reset(seed=seed, options=options)


class Strict(Good):
    """`Good` that knows one option, and refuses every other."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        if unknown := set(options or {}) - {"expert"}:
            raise ConfigError(f"unknown options {sorted(unknown)}")
        return super().reset(seed=seed, options=options)


for _class in (Good, Moody, WithArguments, Strict):
    gym.register(f"broken/{_class.__name__}-v0", entry_point=f"{__name__}:{_class.__name__}", disable_env_checker=True)
