"""The information-gain probe: how likely does the policy find the gold answer, before it writes its next turn?

After the prompt c stands a wrapper that says the answer as the policy itself would; the tokens a of the answer are
scored, the wrapper's are only read:

    ℓ = (1/L) Σ_j log π(a_j | c, wrapper, a_<j)                                        IGPO (2510.14967, eq. 3)

Which tokens are the answer's is found on the whole wrapped text, since a tokenizer may merge characters of the answer
with those beside it. What follows the answer is tokenised with it and then left out: nothing before can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentgym.errors import ConfigError
from agentgym.renderer import Renderer

ANSWER = "{answer}"
WRAPPER = f"<think>\nNow there's enough information to answer\n</think>\n<answer>\n{ANSWER}\n</answer>"
"""The reply that IGPO's code puts the answer into."""


@dataclass(frozen=True)
class Probe:
    """Tokens to stand behind a prompt.

    Attributes:
        ids: The wrapper's beginning and the answer.
        start: The first token of the answer, which goes on to the end.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.ids[self.start :]


def gold_answer(info: Mapping[str, Any], env_id: str) -> str:
    """The answer to probe, the first of ``info["answers"]``; the list is left whole for scoring.

    Raises:
        ConfigError: If the environment gives none.
    """
    answers = info.get("answers")
    if not isinstance(answers, list | tuple) or not answers:
        raise ConfigError(
            f"{env_id} gives no gold answer to probe: its info holds no list `answers` at reset; use an environment "
            "that does, such as agentgym/SearchQA-v0, or igpo.gain=none"
        )
    if not isinstance(answers[0], str) or not answers[0].strip():
        raise ConfigError(f"{env_id}: info['answers'][0] is {answers[0]!r}: the probe needs a text that is not empty")
    return answers[0]


def check_wrapper(wrapper: str) -> None:
    """Refuse a wrapper that does not hold the answer once.

    Raises:
        ConfigError: If so.
    """
    if wrapper.count(ANSWER) != 1:
        raise ConfigError(f"igpo.wrapper is {wrapper!r}: it must hold {ANSWER} exactly once")


def make_probe(renderer: Renderer, answer: str, wrapper: str = WRAPPER) -> Probe:
    """The tokens of an answer in its wrapper, as they would follow a prompt.

    Args:
        renderer: Renderer of the policy's tokenizer.
        answer: The gold answer; special tokens in it are broken up.
        wrapper: A reply with ``{answer}`` in it.
    """
    before, after = wrapper.split(ANSWER)
    text = renderer.escape(answer)
    ids, spans = renderer.encode_spans(before + text + after)
    low, high = len(before), len(before) + len(text)
    inside = [i for i, (a, b) in enumerate(spans) if b > low and a < high]
    return Probe(tuple(ids[: inside[-1] + 1]), inside[0])
