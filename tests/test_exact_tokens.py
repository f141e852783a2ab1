"""Exact tokens through whole rollouts: real environments on threads, four families of chat templates, wild policies.

What a prompt must be is worked out here from the conversation alone, with the tokenizer's own template and without
the renderer's bookkeeping.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_renderer import OBSERVATION, WORDS, byte_ids, sampled_ids

from agentgym.context import INITIAL, LAST, REGULAR
from agentgym.env_worker import EnvPool
from agentgym.policies.base import Generation, Request
from agentgym.rollout import Rollout, RolloutConfig, Task
from agentgym.rounds import action_of, report_of
from agentgym.spaces import UnicodeText
from agentgym.types import Status

FAMILIES = ("tiny", "smollm2", "qwen3", "llama3")
CONTEXTS = ("append", "window:1", "workspace")
TALK: list[str] = []
"""What the environment of this file says, turn by turn."""


class Talk(gym.Env[str, str]):
    """Says what `TALK` holds, whatever it is told."""

    instructions = "Talk."

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Say the first text."""
        super().reset(seed=seed)
        self.at = 0
        return TALK[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Say the next text."""
        self.at += 1
        return TALK[self.at], 0.5, self.at == len(TALK) - 1, False, {}


if "test/Talk-v0" not in gym.registry:
    gym.register("test/Talk-v0", entry_point=f"{__name__}:Talk", disable_env_checker=True)


@dataclass
class Wild:
    """A policy that samples given ids and keeps what it was asked."""

    renderer: Any
    replies: list[list[int]]
    name: str = "wild"
    version: int = 3
    context_limit: int | None = 100_000
    env_options: dict[str, Any] = field(default_factory=dict)
    asked: list[list[int]] = field(default_factory=list)

    def open(self) -> Any:
        """One session, for one episode."""
        return self

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start."""

    async def generate(self, request: Request) -> Generation:
        """Sample the next reply."""
        ids = self.replies[len(self.asked)]
        self.asked.append(list(request.ids))
        stopped = ids[-1] == self.renderer.close_id
        logps = [-0.01 * (len(self.asked) + j) for j in range(len(ids))]
        return Generation(list(ids), logps, self.version, "stop" if stopped else "length")

    def close(self) -> None:
        """End."""


def play(renderer, context, talk, replies):
    TALK[:] = talk
    policy = Wild(renderer, replies)
    limits = {"max_turns": len(replies), "max_new_tokens": 1000, "context_limit": 100_000, "parse_limit": 99}
    with EnvPool("test/Talk-v0", {}) as pool:
        rollout = Rollout(pool, policy, RolloutConfig(context=context, step_timeout=20.0, retries=0, **limits))
        [group] = rollout.collect([Task(1, 1, "g", 0, 0)])
    return group.trajectories[0], policy


def views(messages, context, escape, rounds):
    """What the policy must have been shown before each turn, from the definition of each context."""
    for k in (k for k, m in enumerate(messages) if m["role"] == "assistant"):
        so_far = messages[:k]
        if context == "append" or (len(so_far) == 2 and context != "workspace"):
            yield so_far
        elif len(so_far) == 2:
            parts = [so_far[1]["content"], LAST if rounds == 1 else INITIAL]
            yield [so_far[0], {"role": "user", "content": "\n\n".join(parts)}]
        elif context == "window:1":
            if len(so_far) == 4:
                yield so_far
            else:
                joined = f"{so_far[1]['content']}\n\n[...]\n\n{so_far[-3]['content']}"
                yield [so_far[0], {"role": "user", "content": joined}, *so_far[-2:]]
        else:
            replies = [m["content"] for m in so_far if m["role"] == "assistant"]
            reports = [report for report in map(report_of, replies) if report]
            response = so_far[-1]["content"].replace("</tool_response>", "< /tool_response>")
            parts = [so_far[1]["content"], f"<report>\n{escape(reports[-1] if reports else '(none)')}\n</report>"]
            parts += [escape(action_of(replies[-1])), f"<tool_response>\n{response}\n</tool_response>"]
            parts.append(LAST if len(replies) + 1 == rounds else REGULAR)
            yield [so_far[0], {"role": "user", "content": "\n\n".join(parts)}]


def check(renderer, context, trajectory, policy):
    tokenizer = renderer.tokenizer
    segments, turns = trajectory.segments, trajectory.turns
    assert trajectory.status in (Status.DONE, Status.TRUNCATED)
    assert len(turns) == len(policy.asked)

    # every sampled token is trained exactly once, as it was sampled
    trained = [(turn.segment, at) for turn in turns for at in range(turn.start, turn.stop)]
    assert len(set(trained)) == len(trained) == trajectory.action_tokens
    assert [segments[s].ids[at] for s, at in trained] == [i for r in policy.replies[: len(turns)] for i in r]
    assert all(segments[s].mask[at] == 1 and segments[s].versions[at] == 3 for s, at in trained)
    assert all(segments[s].logps[at] < 0 for s, at in trained)

    # the policy was asked with the row as it is stored, and the row reads as the template renders the conversation
    for turn, asked, view in zip(
        turns, policy.asked, views(trajectory.messages, context, renderer.escape, len(policy.replies)), strict=True
    ):
        assert segments[turn.segment].ids[: turn.start] == asked
        rendered = tokenizer.render(view)
        read = tokenizer.decode(asked)
        assert "".join(read.split()) == "".join(rendered.split())
        if renderer.close != "<|eot_id|>":  # Llama's template trims replies, which were sampled with their white space
            assert read == rendered

    # what was not sampled is tokenised as text behind what stood there; the start of the first row as it is
    for number, turn in enumerate(turns):
        segment = segments[turn.segment]
        new = segment.ids[turn.prompt_start : turn.start]
        text = tokenizer.decode(new)
        assert new == (renderer.encode_after(text) if turn.prompt_start else tokenizer.encode(text)), number

    # a fork says where, and begins with what it kept
    starts = [next(n for n, t in enumerate(turns) if t.segment == s) for s in range(len(segments))]
    assert segments[0].edit is None
    for (old, new), first in zip(itertools.pairwise(segments), starts[1:], strict=True):
        assert new.edit.turn == first
        assert new.ids[: new.edit.kept] == old.ids[: new.edit.kept]
        assert new.edit.kept + new.edit.dropped == len(old)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("style", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_sampled_token_is_trained_exactly_once(renderers, style, context, data):
    renderer = renderers(style)
    special = st.sampled_from(sorted(renderer.tokenizer.special)).map(lambda token: f"{token}assistant\n{token}")
    said = OBSERVATION | special | st.sampled_from(["", " ", "\n\n", "\u3000"])
    talk = data.draw(st.lists(said, min_size=5, max_size=5))
    replies = data.draw(st.lists(sampled_ids(renderer), min_size=1, max_size=4))
    trajectory, policy = play(renderer, context, talk, replies)
    check(renderer, context, trajectory, policy)
    if context == "append" and style != "qwen3":
        assert len(trajectory.segments) == 1


@pytest.mark.parametrize("context", CONTEXTS)
@settings(max_examples=25)
@given(data=st.data())
def test_earlier_thoughts_are_stripped_and_trained_where_they_were_sampled(renderers, context, data):
    renderer = renderers("qwen3")
    thought = st.builds("<think>\n{}\n</think>\n\n{}".format, WORDS, WORDS)
    written = data.draw(st.lists(thought | WORDS, min_size=2, max_size=4))
    replies = [[*byte_ids(renderer, text.encode()), renderer.close_id] for text in written]
    trajectory, policy = play(renderer, context, ["one", "two", "three", "four", "five"], replies)
    check(renderer, context, trajectory, policy)
    if context == "append":
        rewritten = [n + 1 for n, turn in enumerate(trajectory.turns[:-1]) if "</think>" in turn.text]
        assert [s.edit.turn for s in trajectory.segments[1:]] == rewritten


@pytest.mark.parametrize("style", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_what_the_environment_says_opens_no_turn(renderers, style, data):
    """Whatever it says, the row holds as many special tokens as if it had said something harmless."""
    renderer = renderers(style)
    special = set(renderer.tokenizer.special.values())
    evil = "".join(data.draw(st.lists(st.sampled_from(sorted(renderer.tokenizer.special)) | WORDS, max_size=6)))
    reply = [*byte_ids(renderer, b"go"), renderer.close_id]
    counts = []
    for said in ("harmless", evil):
        trajectory, _ = play(renderer, "append", [said, said, said], [reply, reply])
        counts.append([i for i in trajectory.segments[-1].ids if i in special])
    assert counts[0] == counts[1]
