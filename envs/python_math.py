"""Problems that need computing, with a Python tool: numbers, counting, linear algebra, graphs, simulation, dates."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from agentgym.envs.python_math_problems import TEMPLATES
from agentgym.sandboxes.base import Limits, Sandbox
from agentgym.sandboxes.tool_env import Problem, ToolEnv
from agentgym.sandboxes.tools import python, submit

from agentgym.tool_calls import Call

TOLERANCE = 1e-5
"""How far the answer to a problem with a decimal answer may be off."""
_ROUNDING = 1e-9

_INSTRUCTIONS = (
    "You solve a problem that needs computing. Run Python code with the tool python; the standard library is there, a "
    "network is not. When you know the answer, hand it in with the tool submit: only the number. The first one counts."
)
_HOW = {
    "integer": "Submit an integer.",
    "fraction": "Submit the exact number: an integer, or a fraction such as 3/7.",
    "decimal": f"Submit a decimal number; it may be off by {TOLERANCE:.5f} at most.",
}
_EXACT = re.compile(r"[+-]?\d{1,300}(?:/\d{1,300}|\.\d{1,300})?", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d{1,300}(?:\.\d{0,300})?(?:[eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class MathProblem(Problem):
    """A problem with its answer.

    Attributes:
        numbers: What was drawn for it.
        answer: The answer; a float may be off by `TOLERANCE`.
    """

    numbers: dict[str, Any]
    answer: int | Fraction | float


def make_problem(name: str, rng: np.random.Generator, level: int) -> MathProblem:
    """Draw a problem of a template."""
    template = TEMPLATES[name]
    numbers = template.draw(rng, level)
    known = "\n".join(f"{key} = {value!r}" for key, value in numbers.items())
    plan = (Call("python", {"code": f"{known}\n{template.code}"}),)
    text = f"{template.text.format(**numbers)}\n{_HOW[template.answer]}"
    return MathProblem(text, plan, numbers=numbers, answer=template.solve(**numbers))


def is_answer(expected: int | Fraction | float, text: str) -> bool:
    """Whether a text says the expected number: exactly, or within `TOLERANCE` of a float."""
    text = text.strip()
    if isinstance(expected, float):
        return bool(_DECIMAL.fullmatch(text)) and abs(float(text) - expected) <= TOLERANCE + _ROUNDING
    try:
        return bool(_EXACT.fullmatch(text)) and Fraction(text) == expected
    except ZeroDivisionError:
        return False


class PythonMathEnv(ToolEnv):
    """A problem, the tool ``python``, and ``submit``; actions are tool calls as text.

    The reward is 1 for the right answer, else 0, and any answer ends the episode; ``truncated`` after ``max_steps``
    actions. ``info`` holds ``score``, ``max_score``, ``success``, ``task`` (the kind of problem), ``level``, and with
    ``expert`` the ``expert_action``.
    """

    def __init__(
        self,
        task: str | None = None,
        level: int | None = None,
        split: str = "train",
        max_steps: int = 12,
        backend: str = "auto",
        limits: Limits | Mapping[str, Any] | None = None,
        timeout: float = 20.0,
        max_output: int = 8192,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments; see `agentgym.sandboxes.tool_env.ToolEnv`."""
        super().__init__(
            {name: functools.partial(make_problem, name) for name in TEMPLATES},
            (python, submit),
            _INSTRUCTIONS,
            task=task,
            level=level,
            split=split,
            max_steps=max_steps,
            backend=backend,
            limits=limits,
            timeout=timeout,
            max_output=max_output,
            expert=expert,
            render_mode=render_mode,
        )

    def is_right(self, box: Sandbox, problem: MathProblem, answer: str) -> bool:
        """Compare with the answer that was computed when the problem was made."""
        return is_answer(problem.answer, answer)
