"""The probe of the gold answer: which tokens it scores, and that the cached score is the naive one."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import helpers_search
import numpy as np
import pytest
import torch
from conftest import make_model, make_renderer, make_tokenizer
from helpers_policies import tiny_policy
from hypothesis import given
from hypothesis import strategies as st

from agentgym import store
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, ContextFull, EngineError
from agentgym.learner.attention import Packed, hidden_states, logits_at
from agentgym.policies.base import Request
from agentgym.policies.hf import HFPolicy
from agentgym.policies.probe import WRAPPER, Probe, check_wrapper, gold_answer, make_probe
from agentgym.policies.scripted import RandomPolicy
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.seeding import turn_rng

EXACT = 1e-4
"""Largest difference between the cached and the naive score in float32, in nats."""


# ---- the tokens of the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["apple", "It's 12 rooms", "Ærøskøbing 🏝", " north ", "<action>", "1. go north"])
@pytest.mark.parametrize("wrapper", [WRAPPER, "{answer}", "answer {answer}.", "look{answer}around", "é{answer}é"])
def test_the_scored_tokens_cover_the_answer_and_no_more_than_tokens_must(renderer, answer, wrapper):
    probe, answer = make_probe(renderer, answer, wrapper), renderer.escape(answer)
    before, after = wrapper.split("{answer}")
    ids, spans = renderer.encode_spans(before + answer + after)
    assert ids == renderer.encode_after(before + answer + after)
    assert list(probe.ids) == ids[: len(probe.ids)]
    low, high = len(before), len(before) + len(answer)
    chosen = spans[probe.start : len(probe.ids)]
    covered = {i for a, b in chosen for i in range(a, b)}
    visible = {i for i in range(low, high) if not (before + answer + after)[i].isspace()}
    assert visible <= covered  # a tokenizer may swallow white space
    assert all(b > low and a < high for a, b in chosen)
    assert all(b <= low for _, b in spans[: probe.start])
    assert all(a >= high for a, _ in spans[len(probe.ids) :])


def test_a_token_that_spans_the_edge_of_the_answer_belongs_to_it():
    """Tokenised on its own, ``apple`` would be one token more than inside ``green<apple>``-like text that merges."""
    tokenizer = make_tokenizer()
    renderer = Renderer(HFTokenizer(tokenizer))
    text = "take apple from table"
    ids, spans = renderer.encode_spans(text)
    merged = next(i for i, (a, b) in enumerate(spans) if b - a > 2)
    cut = spans[merged][0] + 1  # the answer starts inside a token
    probe = make_probe(renderer, text[cut:], text[:cut] + "{answer}")
    assert (list(probe.ids), probe.start) == (ids, merged)
    alone = renderer.encode_after(text[cut:])
    assert list(probe.answer) != alone


@given(st.text(min_size=1, max_size=12).filter(str.strip), st.sampled_from(["tiny", "phi3", "bytes", "qwen3"]))
def test_any_answer_has_tokens(answer, style):
    probe = make_probe(make_renderer(style), answer)
    assert 0 < probe.start < len(probe.ids)


def test_special_tokens_in_an_answer_are_broken_up(renderers):
    renderer = renderers("smollm2")
    assert renderer.close_id not in make_probe(renderer, f"a{renderer.close}b").ids


@pytest.mark.parametrize("wrapper", ["", "answer", "{answer} or {answer}", "{Answer}"])
def test_a_wrapper_without_one_answer_is_refused(wrapper):
    with pytest.raises(ConfigError, match=r"igpo.wrapper is .* exactly once"):
        check_wrapper(wrapper)
    check_wrapper(WRAPPER)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "test/E-v0 gives no gold answer to probe.*igpo.gain=none"),
        ({"answers": None}, "gives no gold answer"),
        ({"answers": []}, "gives no gold answer"),
        ({"answers": "rome"}, "gives no gold answer"),
        ({"answers": [" "]}, r"info\['answers'\]\[0\] is ' '"),
        ({"answers": [3]}, r"info\['answers'\]\[0\] is 3"),
    ],
)
def test_what_is_no_gold_answer_is_named(info, message):
    with pytest.raises(ConfigError, match=message):
        gold_answer(info, "test/E-v0")
    assert gold_answer({"answers": ["rome", "roma"]}, "e") == "rome"


# ---- the score ------------------------------------------------------------------------------------------------


def naive(policy, prompt, probe, temperature=1.0):
    """ℓ from one forward over everything, without cache or company."""
    ids = torch.tensor([*prompt, *probe.ids])
    with torch.inference_mode():
        hidden = hidden_states(policy.model, ids, torch.arange(len(ids)), Packed([0, len(ids)], [-1]))
        logp = (logits_at(policy.model, hidden) / temperature).log_softmax(-1)
    at = torch.arange(len(prompt) + probe.start, len(ids))
    return float(logp[at - 1, ids[at]].double().mean())


def policy_of(kind="llama", dtype=torch.float32, **settings):
    renderer = Renderer(HFTokenizer(make_tokenizer()))
    policy = HFPolicy(make_model(kind, 512, dtype=dtype), renderer, **settings)
    policy.renderer.close_id = -1
    return policy


def converse(policy, turns, temperature=1.0, probed=lambda episode, turn: True):
    """Ragged conversations side by side, some over sooner than others: prompts, probes, generations of every turn."""

    async def episode(session, i):
        rng = np.random.default_rng(i // 2)  # two of a group begin alike
        session.begin((i // 2, i % 2), f"g{i // 2}")
        ids, out = [], []
        for turn in range(turns[i]):
            ids += rng.integers(0, 400, 3 + 9 * (turn + 1) * (1 + i // 2)).tolist()
            probe = Probe(tuple(rng.integers(0, 400, 4 + i // 2 + turn).tolist()), 1 + i // 2)
            asked = probe if probed(i, turn) else None
            new = 3 + (i + turn) % 3
            said = await session.generate(Request(list(ids), new, turn_rng(i, turn), temperature, probe=asked))
            out.append((list(ids), probe, said))
            ids += said.ids
        session.close()
        return out

    async def main():
        sessions = [policy.open() for _ in turns]
        return await asyncio.gather(*(episode(s, i) for i, s in enumerate(sessions)))

    return [found for row in asyncio.run(main()) for found in row]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"deterministic": False}, {"reuse": False}, {"prefill_budget": 40}])
def test_a_cached_score_is_the_naive_one(kind, settings):
    policy = policy_of(kind, **settings)
    found = converse(policy, [4, 2, 1, 3, 4, 1], temperature=0.7)
    scores = [said.probe for _, _, said in found]
    assert scores == pytest.approx([naive(policy, ids, probe, 0.7) for ids, probe, _ in found], abs=EXACT)
    assert np.ptp(scores) > 1  # they do differ
    assert policy.stats["probed"] == len(found)


def test_a_cached_score_is_exact_in_double_precision():
    """Spec A14-4: ragged rows, and a batch that shrinks as episodes end."""
    policy = policy_of(dtype=torch.float64)
    found = converse(policy, [4, 2, 1, 3, 4, 1])
    expected = [naive(policy, ids, probe) for ids, probe, _ in found]
    assert [said.probe for _, _, said in found] == pytest.approx(expected, abs=1e-10)


def test_a_transcript_of_forty_tokens_scored_at_every_turn_end():
    """Spec A14-4: turns that end at 8, 19, 30 and 40, six wrapped tokens of which 2 to 4 are the answer."""
    policy, ends = policy_of(dtype=torch.float64), (8, 19, 30, 40)
    rng = np.random.default_rng(0)
    ids, probe = rng.integers(0, 400, 40).tolist(), Probe(tuple(rng.integers(0, 400, 5).tolist()), 2)

    async def main():
        session = policy.open()
        session.begin((0,), "g")
        return [
            (await session.generate(Request(ids[:end], 1, turn_rng(0, k), probe=probe))).probe
            for k, end in enumerate(ends)
        ]

    expected = [naive(policy, ids[:end], probe) for end in ends]
    assert asyncio.run(main()) == pytest.approx(expected, abs=1e-10)
    assert policy.stats["prefilled"] == 40  # each token of the transcript once

    # the paper's one pass: the transcript in pieces, a copy of the probe behind each, positions restarting there
    def at_once(restart):
        rows, parents, positions, last = [], [], [], -1
        for start, end in zip((0, *ends), ends, strict=False):
            parents += [last, len(rows)]
            last = len(rows)
            rows += [ids[start:end], list(probe.ids)]
            first = end if restart else len(ids)
            positions += [*range(start, end), *range(first, first + len(probe.ids))]
        cu = np.cumsum([0, *map(len, rows)]).tolist()
        flat = torch.tensor([i for row in rows for i in row])
        with torch.inference_mode():
            hidden = hidden_states(policy.model, flat, torch.tensor(positions), Packed(cu, parents))
            logp = logits_at(policy.model, hidden).log_softmax(-1)
        tokens = [torch.arange(cu[2 * k + 1] + probe.start, cu[2 * k + 2]) for k in range(len(ends))]
        return [float(logp[t - 1, flat[t]].mean()) for t in tokens]

    assert at_once(restart=True) == pytest.approx(expected, abs=1e-10)
    assert max(abs(a - b) for a, b in zip(at_once(restart=False), expected, strict=True)) > 0.01


def test_a_probe_changes_nothing_that_is_written():
    with_probe, without = policy_of(dtype=torch.float64), policy_of(dtype=torch.float64)
    some = converse(with_probe, [4, 2, 1, 3])
    none = converse(without, [4, 2, 1, 3], probed=lambda *_: False)
    mixed = converse(policy_of(dtype=torch.float64), [4, 2, 1, 3], probed=lambda i, turn: (i + turn) % 2)
    assert [said.ids for *_, said in some] == [said.ids for *_, said in none] == [said.ids for *_, said in mixed]
    for *_, a in none:
        assert a.probe is None
    for (*_, a), (*_, b), (*_, c) in zip(some, none, mixed, strict=True):
        assert a.logps == pytest.approx(b.logps, abs=1e-10)
        assert c.logps == pytest.approx(b.logps, abs=1e-10)
        assert c.probe is None or c.probe == pytest.approx(a.probe, abs=1e-10)
    assert with_probe.stats["prefilled"] == without.stats["prefilled"]


def test_an_answer_of_one_token_without_a_wrapper():
    policy = policy_of()
    probe, prompt = Probe((7,), 0), [1, 2, 3]

    async def main():
        session = policy.open()
        session.begin((0,), "g")
        return [(await session.generate(Request(prompt, 2, turn_rng(0, k), probe=probe))).probe for k in range(2)]

    first, again = asyncio.run(main())  # the second time only the last token of the prompt is missing
    assert first == pytest.approx(naive(policy, prompt, probe), abs=EXACT)
    assert again == pytest.approx(first, abs=EXACT)


def test_at_temperature_0_the_probe_reads_the_models_own_distribution():
    policy = policy_of()
    ((ids, probe, said),) = converse(policy, [1], temperature=0.0)
    assert said.probe == pytest.approx(naive(policy, ids, probe), abs=EXACT)


def test_the_numbers_of_the_spec():
    """Spec A14-1: the mean of log-probabilities, and never the probability of the whole answer."""
    assert np.mean([-2, -1, -3]) == -2.0
    assert math.exp(-2.0) == pytest.approx(0.135335, abs=1e-6)
    assert math.exp(-6.0) == pytest.approx(0.00248, abs=1e-5)


@pytest.mark.parametrize(
    ("probe", "error", "message"),
    [
        (Probe(tuple([5] * 1021), 3), ContextFull, "4 prompt tokens and 1021 new ones exceed the model's 1024"),
        (Probe((5, 512), 1), EngineError, "a token that the model does not know"),
    ],
)
def test_a_probe_that_cannot_be_read_is_refused(probe, error, message):
    policy = policy_of()

    async def main():
        session = policy.open()
        session.begin((0,), "g")
        await session.generate(Request([1, 2, 3, 4], 2, turn_rng(0, 0), probe=probe))

    with pytest.raises(error, match=message):
        asyncio.run(main())


# ---- in episodes ----------------------------------------------------------------------------------------------


def lookup(policy, wrapper=helpers_search.WRAPPER, **settings):
    values = {"max_turns": 4, "max_new_tokens": 6, "context_limit": 300, "parse_limit": 9, **settings}
    with EnvPool("test/Lookup-v0", {"patient": True}) as pool:
        rollout = Rollout(pool, policy, RolloutConfig(**values))
        rollout.wrapper = wrapper
        groups = rollout.collect(group_tasks(0, 0, 3, 2))
    return [t for g in groups for t in g.trajectories]


def home(trajectory):
    """The gold answer of an episode, drawn again."""
    return helpers_search.Lookup().reset(seed=trajectory.env_seed)[1]["answers"][0]


@pytest.mark.parametrize("context", ["append", "window:1", "workspace"])
def test_every_turn_is_probed_before_it_is_written(context):
    policy = tiny_policy(4)
    trajectories = lookup(policy, context=context, temperature=0.9)
    for t in trajectories:
        probe = make_probe(policy.renderer, home(t), helpers_search.WRAPPER)
        for turn in t.turns:
            prompt = t.segments[turn.segment].ids[: turn.start]
            assert turn.probe == pytest.approx(naive(policy, prompt, probe, 0.9), abs=EXACT)
    assert sum(len(t.turns) > 1 for t in trajectories) >= 2
    first = {t.group: t.turns[0].probe for t in trajectories}
    assert len(set(first.values())) == 3


def test_the_answer_never_reaches_the_policy():
    policy = tiny_policy(4)
    for t in lookup(policy):
        assert not any(text.startswith("look") for text in (u.text for u in t.turns))  # so nothing was found out
        read = policy.renderer.tokenizer.decode(
            [i for s in t.segments for i, m in zip(s.ids, s.mask, strict=True) if not m]
        )
        assert home(t) not in read
        assert not any(home(t) in m["content"] for m in t.messages if m["role"] != "assistant")
        assert "answers" not in t.info


def test_nothing_is_probed_unless_asked_and_scripted_policies_give_no_score():
    assert all(u.probe is None for t in lookup(tiny_policy(4), wrapper=None) for u in t.turns)
    assert all(u.probe is None for t in lookup(RandomPolicy()) for u in t.turns)


def test_an_answer_that_is_missing_in_some_episodes_stops_the_run():
    with EnvPool("test/Lookup-v0", {"rare": True}) as pool:
        rollout = Rollout(pool, tiny_policy(4), RolloutConfig(max_new_tokens=6, context_limit=300))
        rollout.wrapper = helpers_search.WRAPPER
        with pytest.raises(ConfigError, match="test/Lookup-v0 gives no gold answer"):
            rollout.collect(group_tasks(0, 0, 8, 1))


def test_a_prompt_leaves_room_for_the_probe():
    """The wrapper is longer than what the policy may write: an episode ends before its probe would not fit."""
    policy = tiny_policy(4)
    long = "so it is " * 12 + "{answer}"
    probe = len(make_probe(policy.renderer, "rome", long).ids)
    assert probe > 60
    settings = {"max_turns": 40, "context_limit": 200}
    trajectories = lookup(policy, wrapper=long, **settings)
    for t in trajectories:
        assert all(u.probe is not None for u in t.turns)
        assert max(u.start for u in t.turns) <= 200 - probe + 10  # answers differ by a few tokens
    with pytest.raises(
        ConfigError, match=r"the first prompt does not fit.*are kept for the answer.*raise rollout.context_limit"
    ):
        lookup(policy, wrapper="so it is " * 60 + "{answer}", **settings)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_scores_are_stored_and_read_back(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    (trajectory, *_) = lookup(tiny_policy(4))
    trajectory.turns.append(dataclasses.replace(trajectory.turns[0], probe=None))
    store.write(tmp_path / f"t.{suffix}", [trajectory])
    assert store.read(tmp_path / f"t.{suffix}") == [trajectory]
