"""Questions answered by searching, in the format of IGPO's search agent (arXiv:2510.14967)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs.retrieval import Document, Retriever, open_retriever
from agentgym.envs.search_datasets import by_split
from agentgym.envs.search_format import Malformed, read_reply, write_answer, write_search
from agentgym.envs.search_questions import HOPS, SPLITS, Generator, Question, generator_of
from gymnasium.error import ResetNeeded

from agentgym.answers import BAD_FORMAT, COUNTED, exact_match, f1, first_answer, outcome
from agentgym.errors import ConfigError, unknown
from agentgym.spaces import UnicodeText
from agentgym.types import ToolUse

MOST_QUERIES = 3
"""Queries of a call that are looked up; the others are dropped."""

THINK = ("required", "optional", "opened")
"""Whether a reply must have a think block. ``opened``: the prompt ends with the opening tag, the reply goes on."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "web_search",
        "description": f"Search. Of the queries, the first {MOST_QUERIES} are looked up.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "array", "items": {"type": "string"}, "description": "The queries, one or several."}
            },
            "required": ["query"],
        },
    },
}

_FULL = (
    "Answer the question. You may search as often as you need, {turns} replies in all. Every reply has one of two "
    "shapes and nothing else.\n"
    "To search:\n{think}<tool_call>\n"
    '{{"name": "web_search", "arguments": {{"query": ["first query", "second query"]}}}}\n</tool_call>\n'
    "To answer, which ends the task:\n{think}<answer>\nthe answer\n</answer>\n"
    "The answer is bare: a word, a number or a short phrase, no sentence; yes or no to a question that asks for it. A "
    "reply of another shape ends the task too, and counts as worse than a wrong answer.\n\n<tools>\n{tools}\n</tools>"
)
_BRIEF = "Search or answer."
_THOUGHT = "<think>\nyour thoughts\n</think>\n"


class SearchQAEnv(gym.Env[str, str]):
    """A question, the tool ``web_search``, and one answer; actions are the whole replies of a model.

    The reward comes with the end: the F1 of the words of the answer, or `agentgym.answers.BAD_FORMAT` where the
    format is not kept or no answer was given. ``terminated`` with an answer or a reply of no shape, ``truncated`` after
    ``max_steps`` replies. ``info`` holds ``answers`` (what is right, the best first; for scoring, never for the
    model), ``question``, ``question_id``, ``hops``, ``searches``, ``score`` (F1, 0 where the format is not kept),
    ``max_score``, ``success`` (exact match and format kept), ``f1`` and ``em`` (without regard to the format),
    ``format_ok``, and with ``expert`` the ``expert_action``.

    Attributes:
        tools: The JSON schema of the tool.
        instructions: What an agent reads first.
        calls: The searches of the last step, for logs.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        corpus: str = "world",
        retriever: str = "local",
        questions: str | Mapping[str, str] | None = None,
        split: str = "train",
        hops: int | None = None,
        think: str = "required",
        brief: bool = False,
        results: int = 5,
        snippet_chars: int = 500,
        max_steps: int = 10,
        counted: str = "set",
        timeout: float = 10.0,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments, and open the search engine.

        Args:
            corpus: Name of a local corpus: ``world``, ``tiny``, or one of your own. Questions are made from its facts.
            retriever: See `agentgym.envs.retrieval.open_retriever`.
            questions: A file of questions (`agentgym.envs.search_datasets`), whose splits are drawn by the ids, or one
                for each split; None: made from the facts of the corpus.
            split: ``train``, ``dev`` or ``test``.
            hops: Look-ups that a question needs, 1 to 4; None: 2 or 3 where questions are made, any where read.
            think: One of `THINK`.
            brief: Tell the agent next to nothing, and show a result in one line without its address: for small models
                that learn the format from demonstrations.
            results: Results shown for each query.
            snippet_chars: Characters of a passage that are shown.
            max_steps: Replies until ``truncated``.
            counted: How F1 counts repeated words: ``set`` or ``multiset``.
            timeout: Seconds that a search may take, where the retriever is a server.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument, or a broken index or file of questions.
            MissingDependency: The index of the corpus was not built.
        """
        for name, value, least in (
            ("max_steps", max_steps, 1),
            ("results", results, 1),
            ("snippet_chars", snippet_chars, 20),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        for name, chosen, choices in (("think", think, THINK), ("counted", counted, COUNTED)):
            if chosen not in choices:
                raise unknown(name, str(chosen), choices)
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.split, self.hops, self.expert, self.render_mode = split, hops, expert, render_mode
        self.think, self.brief, self.results, self.snippet_chars = think, brief, results, snippet_chars
        self.max_steps, self.counted, self.max_score = max_steps, counted, 1.0
        self._check_choice(split, hops)
        self._open = lambda: open_retriever(retriever, corpus, timeout)
        self._engine: Retriever | None = self._open()
        try:
            self._generator: Generator | None = None
            self._read: dict[str, dict[int | None, list[Question]]] = {}
            if questions is None:
                self._generator = generator_of(corpus)
            else:
                self._read = by_split(questions)
            self._check_questions(split, hops)
        except BaseException:
            self.close()
            raise
        self.tools = [TOOL]
        thought = {"required": _THOUGHT, "opened": _THOUGHT, "optional": ""}[think]
        full = _FULL.format(turns=max_steps, think=thought, tools=json.dumps(TOOL))
        self.instructions = _BRIEF if brief else full
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.calls: list[ToolUse] = []
        self._playing = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask a question.

        Args:
            seed: Chooses the question of the split. Drawn from ``np_random`` if None.
            options: ``split``, ``hops``, ``expert`` for this episode instead of the constructor's.

        Returns:
            The question, and ``info``.

        Raises:
            ConfigError: A wrong option, or there is no such question.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        split, hops = options.pop("split", self.split), options.pop("hops", self.hops)
        expert = bool(options.pop("expert", self.expert))
        if options:
            raise unknown("reset option", next(iter(options)), ["split", "hops", "expert"])
        self._check_choice(split, hops)
        self._playing = False
        self._question = self._draw(split, hops)
        self._hints = expert
        if self._engine is None:
            self._engine = self._open()
        self._steps, self._searches, self._planned = 0, 0, 0
        self._said: list[str] = []
        self._result: dict[str, Any] = {"score": 0.0, "success": False, "f1": 0.0, "em": False, "format_ok": True}
        self.calls = []
        self._playing = True
        self._text = f"Question: {self._question.text}"
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a reply: search, or end.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            SearchError: The search engine failed, which says nothing about the agent.
        """
        if not self._playing or self._engine is None:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._steps += 1
        self.calls = []
        reply = f"<think>{action}" if self.think == "opened" else action
        self._said.append(reply)
        read = read_reply(reply, self.think != "optional")
        terminated = isinstance(read, str | Malformed)
        if isinstance(read, str):
            self._text = "The answer was taken."
        elif isinstance(read, Malformed):
            self._text = f"The task has ended: {read.reason}."
        elif isinstance(read.queries, str):
            self._text = f"[error: {read.queries}]"
        else:
            self._follow(action)
            self._text = self._search(read.queries[:MOST_QUERIES])
        truncated = not terminated and self._steps >= self.max_steps
        reward = self._end(malformed=not isinstance(read, str)) if terminated or truncated else 0.0
        self._playing = not (terminated or truncated)
        return self._text, reward, terminated, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the search engine. Safe to call again."""
        engine, self._engine, self._playing = self._engine, None, False
        if engine is not None:
            engine.close()

    def _search(self, queries: list[str]) -> str:
        assert self._engine is not None
        shown = []
        for query in queries:
            started = time.perf_counter()
            found = self._engine.search(query, self.results)
            self._searches += 1
            text = self._show(query, found)
            given = json.dumps({"query": [query]}, ensure_ascii=False)
            self.calls.append(ToolUse("web_search", given, text, "ok", seconds=time.perf_counter() - started))
            shown.append(text)
        return "\n\n".join(shown)

    def _show(self, query: str, found: list[Document]) -> str:
        lines = [] if self.brief else [f"Results for {json.dumps(query, ensure_ascii=False)}:"]
        for number, document in enumerate(found, start=1):
            text = " ".join(document.text.split())
            text = text if len(text) <= self.snippet_chars else f"{text[: self.snippet_chars].rstrip()}..."
            if self.brief:
                lines.append(f"{document.title}: {text}")
            else:
                lines += [
                    f"{number}. {document.title}",
                    *([f"   {document.url}"] if document.url else ()),
                    f"   {text}",
                ]
        return "\n".join(lines if found else [*lines, "Nothing was found."])

    def _end(self, malformed: bool) -> float:
        """Score the episode; returns its reward."""
        said, golds = "\n".join(self._said), self._question.answers
        answer = first_answer(said)
        em, words = bool(answer) and exact_match(answer, golds), f1(answer, golds, self.counted)
        reward = BAD_FORMAT if malformed else outcome(said, golds, self.counted)
        kept = reward >= 0
        self._result = {
            "score": words if kept else 0.0,
            "success": em and kept,
            "f1": words,
            "em": em,
            "format_ok": kept,
        }
        return reward

    def _follow(self, action: str) -> None:
        """Bring the expert's plan up to date with what was done."""
        if self._planned < len(self._question.plan) and action.strip() == self._hint().strip():
            self._planned += 1

    def _hint(self) -> str:
        plan = self._question.plan
        if self._planned < len(plan):
            step = plan[self._planned]
            return write_search(step.thought, [step.query], self.think)
        return write_answer(self._question.conclusion, self._question.answers[0], self.think)

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "answers": list(self._question.answers),
            "question": self._question.text,
            "question_id": self._question.id,
            "hops": self._question.hops,
            "searches": self._searches,
            "max_score": self.max_score,
            **self._result,
        }
        if self._hints:
            info["expert_action"] = self._hint() if self._playing else None
        return info

    def _draw(self, split: str, hops: int | None) -> Question:
        if self._generator is not None:
            if hops is None:
                hops = (2, 3)[int(self.np_random.integers(2))]
            return self._generator.draw(self.np_random, split, hops)
        self._check_questions(split, hops)
        pool = self._read[split][hops]
        return pool[int(self.np_random.integers(len(pool)))]

    def _check_choice(self, split: Any, hops: Any) -> None:
        if split not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        if hops is not None and (isinstance(hops, bool) or hops not in HOPS):
            raise ConfigError(f"hops is {hops!r}: it must be {', '.join(map(str, HOPS))} or None")

    def _check_questions(self, split: str, hops: int | None) -> None:
        """Refuse a choice for which there are no questions."""
        if self._generator is not None:
            for number in (2, 3) if hops is None else (hops,):
                self._generator.draw(np.random.default_rng(0), split, number)
        elif not self._read.get(split, {}).get(hops):
            wanted = "" if hops is None else f" with {hops} hops"
            raise ConfigError(f"questions: there are none of split {split!r}{wanted}")
