"""Questions answered by research over many rounds: search, read pages, compute; the environment of IterResearch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from agentgym.envs.retrieval import Document
from agentgym.envs.search_qa import MOST_QUERIES, SearchQAEnv
from agentgym.sandboxes import choose, open_sandbox
from agentgym.sandboxes.base import Limits, Sandbox
from agentgym.sandboxes.tools import Toolbox, schema
from agentgym.sandboxes.tools import python as python_tool
from gymnasium.error import ResetNeeded

from agentgym.answers import exact_match, f1
from agentgym.errors import ConfigError, SandboxError
from agentgym.judge import make_judge
from agentgym.rounds import read_action, write_round
from agentgym.tool_calls import Call, CallError
from agentgym.types import ToolUse

MOST_ROUNDS = 2048


def _function(name: str, description: str, key: str, parameter: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: parameter}, "required": [key]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SEARCH = _function(
    "search",
    f"Search. Of the queries, the first {MOST_QUERIES} are looked up; passages are shown with their addresses.",
    "query",
    {"type": "array", "items": {"type": "string"}, "description": "The queries, one or several."},
)
VISIT = _function("visit", "Read a whole page.", "url", {"type": "string", "description": "Its address."})

_FULL = (
    "Answer the question by research, in {rounds} rounds at most. Use the tools, check what you find, and answer when "
    "you are sure. The answer is bare: a name, a number or a short phrase, no sentence.\n\n<tools>\n{tools}\n</tools>"
)
_BRIEF = "Research the question."


class DeepResearchEnv(SearchQAEnv):
    """A question, the tools ``search``, ``visit`` and ``python``, and one answer, which a judge scores.

    An action is one tool call or several, or ``<answer>…</answer>``; a report and a thought may stand beside it and are
    not looked at (`agentgym.rounds`). What cannot be read is answered with an error and costs a round. The reward comes
    with the answer: its score. ``terminated`` with an answer, ``truncated`` after ``max_rounds`` actions. ``info``
    holds ``answers`` (what is right; for scoring, never for the model), ``question``, ``question_id``, ``hops``,
    ``searches``, ``visits``, ``max_rounds``, ``score``, ``max_score``, ``success`` (the full score), ``f1``, ``em``,
    ``format_ok`` (every action could be read), and with ``expert`` the ``expert_action``: report and call, or answer.
    """

    def __init__(
        self,
        corpus: str = "world",
        retriever: str = "local",
        questions: str | Mapping[str, str] | None = None,
        split: str = "train",
        hops: int | None = None,
        judge: str = "exact",
        python: bool = False,
        brief: bool = False,
        results: int = 5,
        snippet_chars: int = 500,
        max_output: int = 8192,
        max_rounds: int = 32,
        backend: str = "auto",
        limits: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments, and open the search engine; a box for ``python`` is opened by its first call.

        Args:
            corpus: As for `agentgym.envs.search_qa.SearchQAEnv`, like those that are not explained here.
            retriever: See `agentgym.envs.retrieval.open_retriever`; ``visit`` is there where it keeps pages.
            questions: A file of questions, one for each split, or None.
            split: ``train``, ``dev`` or ``test``.
            hops: Look-ups that a question needs, or None.
            judge: Who scores the answer: see `agentgym.judge.make_judge`.
            python: Whether there is a tool ``python``.
            brief: Tell the agent next to nothing, and show a result in one line without its address.
            results: Results shown for each query.
            snippet_chars: Characters of a passage that a search shows.
            max_output: Characters of an observation; the rest is cut.
            max_rounds: Actions until ``truncated``, at most `MOST_ROUNDS`.
            backend: Backend of the sandbox.
            limits: What a box may use: the fields of `agentgym.sandboxes.base.Limits`.
            timeout: Seconds that a search, or a call of ``python``, may take.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument, or a broken index or file of questions.
            MissingDependency: The index of the corpus was not built.
            SandboxUnavailable: ``python`` without a sandbox.
        """
        if not 1 <= max_rounds <= MOST_ROUNDS:
            raise ConfigError(f"max_rounds is {max_rounds}: it must be 1 to {MOST_ROUNDS}")
        if max_output < 256:
            raise ConfigError(f"max_output is {max_output}: an observation needs at least 256 characters")
        self._judge = make_judge(judge)
        self._box: Sandbox | None = None
        self._limits = None if limits is None else Limits(**limits)
        if python:
            choose(backend)
        super().__init__(
            corpus=corpus,
            retriever=retriever,
            questions=questions,
            split=split,
            hops=hops,
            brief=brief,
            results=results,
            snippet_chars=snippet_chars,
            max_steps=max_rounds,
            timeout=timeout,
            expert=expert,
            render_mode=render_mode,
        )
        self.max_output, self._backend, self._timeout = max_output, backend, timeout
        offered = [("search", SEARCH), ("visit", VISIT), ("python", schema(python_tool))]
        there = {"search": True, "visit": hasattr(self._engine, "page"), "python": python}
        self._offered = [name for name, _ in offered if there[name]]
        self.tools = [tool for name, tool in offered if there[name]]
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        self.instructions = _BRIEF if brief else _FULL.format(rounds=max_rounds, tools=listed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a question; see `agentgym.envs.search_qa.SearchQAEnv.reset`."""
        self._visits = 0
        if self._box is not None:
            try:
                self._box.reset()
            except SandboxError:
                self._close_box()
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make the calls of an action, or take its answer.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            SearchError: The search engine failed.
            SandboxError: The box failed.
            JudgeError: There is no verdict on the answer.
        """
        if not self._playing or self._engine is None:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._steps += 1
        self.calls = []
        reward, terminated = 0.0, False
        try:
            read = read_action(action)
            if isinstance(read, str):
                reward, terminated = self._judged(read), True
                self._text = "The answer was taken."
            else:
                said = [self._call(call) for call in read]
                heads = [f"[call {n} of {len(read)}: {call.name}]\n" for n, call in enumerate(read, start=1)]
                self._text = "\n".join(map(str.__add__, heads, said)) if len(read) > 1 else said[0]
        except CallError as error:
            self._result["format_ok"] = False
            self._text = f"[error: {error}]"
        if len(self._text) > self.max_output:
            self._text = f"{self._text[: self.max_output]}\n[cut: {len(self._text)} characters in all]"
        truncated = not terminated and self._steps >= self.max_steps
        self._playing = not (terminated or truncated)
        return self._text, reward, terminated, truncated, self._info()

    def close(self) -> None:
        """Close the search engine and the box. Safe to call again."""
        self._close_box()
        super().close()

    def _close_box(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            box.close()

    def _judged(self, answer: str) -> float:
        golds = self._question.answers
        score = self._judge.score(self._question.text, golds, answer)
        found = {"f1": f1(answer, golds, self.counted), "em": exact_match(answer, golds)}
        self._result |= {"score": score, "success": score >= 1, **found}
        return score

    def _call(self, call: Call) -> str:
        wrong = self._wrong(call)
        if call.name == "search" and not wrong:
            queries = call.arguments["query"]
            queries = [queries] if isinstance(queries, str) else queries
            made = len(self.calls)
            said = self._search(queries[:MOST_QUERIES])
            for use in self.calls[made:]:
                use.name = "search"
            if self._planned < len(plan := self._question.plan) and plan[self._planned].query in queries:
                self._planned += 1
            return said
        started = time.perf_counter()
        if call.name == "python" and not wrong:
            return self._python(call)
        said = f"[error: {wrong}]" if wrong else self._visit(call.arguments["url"])
        given = json.dumps(call.arguments, ensure_ascii=False)
        status = "error" if wrong else "ok"
        self.calls.append(ToolUse(call.name, given, said, status, seconds=time.perf_counter() - started))
        return said

    def _wrong(self, call: Call) -> str:
        """What is wrong with a call, empty if nothing is; the toolbox looks at those of ``python``."""
        if call.name not in self._offered:
            return f"there is no tool {call.name[:40]!r}; the tools are {', '.join(self._offered)}"
        if call.name == "python":
            return ""
        key = {"search": "query", "visit": "url"}[call.name]
        if set(call.arguments) != {key}:
            return f"{call.name} takes the argument {key} and no other"
        value = call.arguments[key]
        several = value if call.name == "search" and isinstance(value, list) else [value]
        if not several or not all(isinstance(v, str) and v.strip() for v in several):
            return f"the argument {key} of {call.name} must be a text{' or a list of texts' if key == 'query' else ''}"
        return ""

    def _visit(self, url: str) -> str:
        self._visits += 1
        page: Document | None = self._engine.page(url.strip())  # type: ignore[union-attr]
        return f"There is no page {url.strip()[:200]}" if page is None else f"{page.title}\n\n{page.text}"

    def _python(self, call: Call) -> str:
        if self._box is None:
            self._box = open_sandbox(self._backend, limits=self._limits)
        tools = Toolbox(self._box, (python_tool,), self._timeout, min(self.max_output, 65536))
        try:
            said = tools.call(call.name, call.arguments)
        except BaseException:
            self._close_box()
            raise
        self.calls += tools.calls
        return said

    def _hint(self) -> str:
        """The expert's next reply: what it found so far, then the next search of its plan, or the answer."""
        question, plan = self._question, self._question.plan
        thoughts = [step.thought for step in plan[: self._planned + 1]]
        if self._planned >= len(plan):
            thoughts.append(question.conclusion or "I know the answer.")
        report = thoughts[-1] if self.brief else "\n".join(f"- {thought}" for thought in thoughts)
        if self._planned < len(plan):
            return write_round(report, Call("search", {"query": [plan[self._planned].query]}))
        return write_round(report, question.answers[0])

    def _info(self) -> dict[str, Any]:
        return super()._info() | {"visits": self._visits, "max_rounds": self.max_steps}
