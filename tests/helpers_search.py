"""A question of two hops with gold answers, small enough for a tiny model; importing this registers it as test/..."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from agentgym.spaces import UnicodeText

WRAPPER = "answer {answer}"
"""How the plain codec says an answer here."""


class Lookup(gym.Env[str, str]):
    """``look NAME`` tells a friend and a city, ``answer CITY`` ends with 1 or 0, any other text with -2."""

    instructions = "Find out where the friend lives."
    people, cities = ("ann", "bob", "cid", "dan"), ("rome", "oslo", "lima", "cairo")

    def __init__(self, answers: bool = True, rare: bool = False, patient: bool = False):
        """Tell the gold answers or not (``rare``: only for even seeds); ``patient``: any other text ends nothing."""
        self.answers, self.rare, self.patient = answers, rare, patient
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw who is whose friend and lives where."""
        super().reset(seed=seed)
        order = [str(p) for p in self.np_random.permutation(self.people)]
        self.friend = dict(zip(order, [*order[1:], order[0]], strict=True))
        self.home = dict(zip(self.people, map(str, self.np_random.permutation(self.cities)), strict=True))
        self.asked, self.seen, self.right = order[0], [], False
        self.told = self.answers and not (self.rare and int(seed or 0) % 2)
        info = self._info()
        if self.told:
            city = self.home[self.friend[self.asked]]
            info["answers"] = [city, f"the city of {city}"]
        return f"Where lives the friend of {self.asked}?", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Look up, or answer."""
        verb, _, rest = action.partition(" ")
        if verb == "look" and rest in self.people:
            self.seen.append(rest)
            text = f"{rest} is a friend of {self.friend[rest]} and lives in {self.home[rest]}."
            return text, 0.0, False, False, self._info()
        if self.patient and verb != "answer":
            return f"Nobody is called {rest}.", 0.0, False, False, self._info()
        self.right = verb == "answer" and rest == self.home[self.friend[self.asked]]
        reward = float(self.right) if verb == "answer" else -2.0
        return "The end.", reward, True, False, self._info()

    def _info(self) -> dict[str, Any]:
        friend = self.friend[self.asked]
        plan = [f"look {self.asked}", f"look {friend}", f"answer {self.home[friend]}"]
        return {
            "admissible_commands": [f"look {p}" for p in self.people] + [f"answer {c}" for c in self.cities],
            "expert_action": plan[min(len(self.seen), 2)],
            "success": self.right,
        }


if "test/Lookup-v0" not in gym.registry:
    gym.register("test/Lookup-v0", entry_point=f"{__name__}:Lookup", disable_env_checker=True)
