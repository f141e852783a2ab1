"""An environment that dies, hangs or raises where it is told to; it lives in another process than the tests."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym

from agentgym.errors import ConfigError
from agentgym.spaces import UnicodeText


class Unreadable:
    """Can be sent, but not be read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return int, ("none",)


class Mortal(gym.Env[str, str]):
    """Three steps; breaks at the reset (``at`` 0) or at step ``at``, ``times`` times for each of ``seeds``.

    What broke is noted in the folder ``marks``, which outlives the process.
    """

    instructions = "Count."

    def __init__(self, how: str = "", at: int = 0, seeds: tuple[int, ...] = (), marks: str = "", times: int = 10**9):
        """Note what is to happen."""
        if how == "refuse":
            raise ConfigError("how is 'refuse': this environment refuses")
        self.how, self.at, self.seeds, self.marks, self.times = how, at, tuple(seeds), marks, times
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        self.number, self.count = int(seed or 0), 0
        self._break()
        return f"Task {self.number}", {"pid": os.getpid(), "options": options}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Count."""
        self.count += 1
        info = {"pid": os.getpid(), "success": True}
        if self._break() == "unreadable":
            info["thing"] = Unreadable()
        return f"You said {action}", 1.0, self.count == 3, False, info

    def _break(self) -> str:
        if not self.how or self.count != self.at or (self.seeds and self.number not in self.seeds):
            return ""
        if self.marks:
            done = len(list(Path(self.marks).glob(f"{self.number}-*")))
            if done >= self.times:
                return ""
            (Path(self.marks) / f"{self.number}-{done}").touch()
        if self.how == "raise":
            raise RuntimeError("broken")
        if self.how == "exit":
            os._exit(3)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "segv":
            ctypes.string_at(0)
        if self.how == "sleep":
            time.sleep(1000)
        if self.how == "block":  # hangs and never lets go of the interpreter
            ctypes.PyDLL(None).sleep(1000)
        return self.how


gym.register("test/Mortal-v0", entry_point=Mortal, disable_env_checker=True)
