"""DeepResearch with errands, which put rounds between what was found and the answer, and with an expert who dawdles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
from agentgym.envs.deep_research import DeepResearchEnv
from agentgym.envs.search_questions import Lookup, Question

from agentgym.rounds import write_round
from agentgym.tool_calls import Call


class ErrandsEnv(DeepResearchEnv):
    """A question; once it can be answered, a chain of other searches, each named by what the one before showed.

    An answer counts only after the last errand, so that it has to be remembered through as many rounds.
    """

    def __init__(self, errands: tuple[int, int] = (0, 0), dawdle: float = 0.0, **kwargs: Any):
        """Take the fewest and the most errands, the share of rounds that the expert wastes, and DeepResearch's own."""
        self.errands, self.dawdle = errands, dawdle
        super().__init__(**kwargs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a question."""
        self._wasted: list[bool] = []
        text, info = super().reset(seed=seed, options=options)
        self._wasted = (self.np_random.random(self.max_steps + 1) < self.dawdle).tolist()
        return text, info

    def _draw(self, split: str, hops: int | None) -> Question:
        asked = super()._draw(split, hops)
        self._needed = len(asked.plan)
        low, high = self.errands
        others: list[str] = []
        for _ in range(int(self.np_random.integers(low, high + 1))):
            while (query := super()._draw(split, 1).plan[0].query) in (asked.plan[0].query, *others):
                pass
            others.append(query)
        return replace(asked, plan=asked.plan + tuple(Lookup(asked.conclusion, query) for query in others))

    def _call(self, call: Call) -> str:
        said, plan = super()._call(call), self._question.plan
        if len(plan) == self._needed or self._planned < self._needed:
            return said
        left = plan[self._planned :]
        return f"{said}\nNext, search for {left[0].query}." if left else f"{said}\nNow answer."

    def _judged(self, answer: str) -> float:
        return super()._judged(answer if self._planned == len(self._question.plan) else "")

    def _hint(self) -> str:
        """The expert's; or, before it goes on, the search it made last once more."""
        plan = self._question.plan
        if not 0 < self._planned <= self._needed or not (self._wasted and self._wasted[self._steps]):
            return super()._hint()
        known = plan[self._planned].thought if self._planned < len(plan) else self._question.conclusion
        return write_round(known, Call("search", {"query": [plan[self._planned - 1].query]}))


gym.register("study/Errands-v0", ErrandsEnv)
