"""Answers to questions: exact match, F1 of words, and the reward of IGPO's search agent (arXiv:2510.14967, Eq. 2)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

BAD_FORMAT = -2.0
"""The reward of an episode that does not keep to the format, or has no answer; the paper says only that it is negative,
the value is that of the authors' code."""

TAGS = ("think", "answer", "tool_call", "code")
"""The tags that must be closed."""

COUNTED = ("set", "multiset")
"""How F1 counts words that come more than once: once, as in the authors' code, or as often as they come."""

_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLES = frozenset(("a", "an", "the"))
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def split(text: str) -> list[str]:
    """The words of an answer: lower case, a space for each ASCII punctuation mark; articles stay."""
    return text.lower().translate(_SPACES).split()


def f1(answer: str, golds: Sequence[str], counted: str = "set") -> float:
    """The F1 of words with the gold answer that is nearest.

    Args:
        answer: What was answered.
        golds: What would be right, at least one.
        counted: One of `COUNTED`.

    Returns:
        0 to 1.
    """
    return max(_f1(split(answer), split(gold), counted) for gold in golds)


def _f1(answer: list[str], gold: list[str], counted: str) -> float:
    if counted == "set":
        answer, gold = list(set(answer)), list(set(gold))
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether an answer has the same words as a gold answer in the same order, articles aside."""
    words = _without_articles(answer)
    return any(words == _without_articles(gold) for gold in golds)


def _without_articles(text: str) -> list[str]:
    words = split(text)
    return [word for word in words if word not in _ARTICLES] or words


def keeps_format(text: str) -> bool:
    """Whether each of `TAGS` is opened and closed equally often, and never closed first, and there is an answer."""
    for tag in TAGS:
        opened = [match.start() for match in re.finditer(f"<{tag}>", text)]
        closed = [match.start() for match in re.finditer(f"</{tag}>", text)]
        if len(opened) != len(closed) or any(start > end for start, end in zip(opened, closed, strict=True)):
            return False
    return _ANSWER.search(text) is not None


def first_answer(text: str) -> str:
    """What stands between the first answer tags; empty if there are none."""
    found = _ANSWER.search(text)
    return found[1].strip() if found else ""


def outcome(text: str, golds: Sequence[str], counted: str = "set") -> float:
    """The outcome reward: F1 of the first answer if the format is kept, else `BAD_FORMAT`.

    Args:
        text: All that the agent wrote in the episode, without what tools said.
        golds: What would be right, at least one.
        counted: One of `COUNTED`.
    """
    return f1(first_answer(text), golds, counted) if keeps_format(text) else BAD_FORMAT
