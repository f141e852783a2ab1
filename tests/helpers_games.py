"""A small game for many players that breaks, or dawdles, on demand."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
from pettingzoo.utils.env import AECEnv

BROKEN: Counter[int] = Counter()
"""How often each seed broke."""
RELEASE = threading.Event()
"""Set it to let every hanging game go on."""


def forget() -> None:
    """Forget what happened so far."""
    BROKEN.clear()
    RELEASE.clear()


class Ring(AECEnv):
    """Seats speak in turn, ``rounds`` times, and hear the last speech; whose text is longest wins a point each round.

    The first seat is out after its first turn, with a farewell reward, if ``knockout``. ``fault`` happens at move
    ``at`` (0: in the reset), ``times`` times for each seed.
    """

    metadata = {"name": "ring_v0", "render_modes": []}  # noqa: RUF012
    instructions = "Speak in turn."

    def __init__(self, seats=3, rounds=2, fault="", at=1, times=10**9, delay=0.0, knockout=False, commands=True):
        self.possible_agents = [f"seat_{i}" for i in range(seats)]
        self.rounds, self.fault, self.at, self.times, self.delay = rounds, fault, at, times, delay
        self.knockout, self.commands = knockout, commands
        self.noise = np.random.default_rng()

    def reset(self, seed=None, options=None):
        self.seed, self.moves, self.last = seed, 0, "nothing"
        rng = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        odd = int(rng.integers(len(self.agents)))
        self.infos = {a: {"role": "wolf" if i == odd else "sheep"} for i, a in enumerate(self.agents)}
        for agent in self.agents if self.commands else ():
            self.infos[agent]["admissible_commands"] = ["go", "wait"]
        self.word = ["red", "green", "blue", "black"][int(rng.integers(4))]
        self.said = {}
        self.agent_selection = self.agents[0]
        self._break()

    def observe(self, agent):
        return f"Say {self.word}. Before you: {self.last}. Move {self.moves}."

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self._clear_rewards()
        self._cumulative_rewards[agent] = 0.0
        self.moves += 1
        if self.delay:
            time.sleep(float(self.noise.exponential(self.delay)))
        self._break()
        self.last = self.said[agent] = action
        following = self.agents[(self.agents.index(agent) + 1) % len(self.agents)]
        if following == self.agents[0]:
            best = max(self.agents, key=lambda a: (len(self.said[a]), a))
            self.rewards[best] = 1.0
            self.rounds_left = self.rounds - self.moves // len(self.possible_agents)
        self.agent_selection = following
        if self.moves >= self.rounds * len(self.possible_agents):
            self.terminations = dict.fromkeys(self.agents, True)
            for name in self.agents:
                self.infos[name]["won"] = self.infos[name]["role"] == "wolf"
        elif self.knockout and self.moves == 1:
            self.terminations[agent] = True
            self.rewards[agent] -= 2.0
            self._deads_step_first()
        self._accumulate_rewards()

    def metrics(self):
        return {"moves": float(self.moves)}

    def _break(self):
        if not self.fault or self.moves != self.at or BROKEN[self.seed] >= self.times:
            return
        BROKEN[self.seed] += 1
        if self.fault == "hang":
            RELEASE.wait(60)
        elif self.fault == "nan":
            self.rewards[self.agents[0]] = float("nan")
        elif self.fault == "exit":
            raise SystemExit(3)
        elif self.fault == "raise":
            raise RuntimeError("it broke")
