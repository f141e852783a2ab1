"""Several candidates for a decision: all are kept, one is taken, and each answers the prompt that was shown."""

import asyncio

import numpy as np
import pytest
from helpers_policies import tiny_policy

from agentgym.errors import ConfigError
from agentgym.policies.base import Request
from agentgym.policies.candidates import ANOTHER, CandidatePolicy
from agentgym.renderer import Row
from agentgym.types import Message

MESSAGES = [Message(role="system", content="You play."), Message(role="user", content="Speak.")]


@pytest.fixture(scope="module")
def inner():
    return tiny_policy()


def ask(policy, info, seed=0):
    row = Row(policy.renderer)
    row.prompt(MESSAGES, 0)
    request = Request(list(row.segment.ids), 6, np.random.default_rng(seed), info=info, messages=MESSAGES)

    async def turn():
        session = policy.open()
        session.begin((0,), "g")
        try:
            return await session.generate(request)
        finally:
            session.close()

    return asyncio.run(turn()), request


def test_candidates_are_kept_and_one_is_taken(inner):
    policy = CandidatePolicy(inner, 3, lambda info: info["phase"] == "talk")
    taken = set()
    for seed in range(12):
        generation, request = ask(policy, {"phase": "talk"}, seed)
        assert len(generation.candidates) == 3
        numbers = [i for i, c in enumerate(generation.candidates) if c.ids == generation.ids]
        assert numbers
        taken |= set(numbers)
        scored = asyncio.run(inner.score([*request.ids, *generation.ids], len(request.ids)))
        assert scored == pytest.approx(generation.logps, abs=1e-4)
        assert generation.candidates[numbers[0]].logp == pytest.approx(sum(generation.logps), abs=1e-4)
    assert taken == {0, 1, 2}
    assert not ask(policy, {"phase": "vote"})[0].candidates


def test_a_model_can_be_asked_for_something_else(inner):
    seen = []

    class Watching(CandidatePolicy):
        def open(self):
            session = super().open()
            generate = session._inner.generate

            async def watched(request):
                seen.append(request)
                return await generate(request)

            session._inner.generate = watched
            return session

    generation, request = ask(Watching(inner, 3, lambda _: True, prompted=True), {})
    assert [len(r.messages) for r in seen] == [2, 4, 6]
    assert seen[0].ids == request.ids
    for number in (1, 2):
        assert seen[number].messages[-1]["content"] == ANOTHER
        answers = [m["content"] for m in seen[number].messages if m["role"] == "assistant"]
        assert answers == [inner.renderer.decode_reply(c.ids) for c in generation.candidates[:number]]


def test_one_candidate_is_none(inner):
    with pytest.raises(ConfigError, match="at least 2"):
        CandidatePolicy(inner, 1, lambda _: True)
