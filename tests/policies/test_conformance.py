"""What every policy must keep to. A model's log-probabilities are the trainer's, whatever was cached or shared."""

import asyncio
import contextlib
import copy
import re
import string
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from agentgym.errors import ConfigError, ContextFull, EngineError
from agentgym.learner.attention import hidden_states, logits_at
from agentgym.learner.logprobs import token_logprobs
from agentgym.learner.pack import pack, rows_of
from agentgym.policies.base import Request
from agentgym.policies.hf import HFPolicy
from agentgym.policies.sampling import sample
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, RandomPolicy
from agentgym.renderer import Renderer, Row
from agentgym.seeding import member_seed, turn_rng
from agentgym.types import Message, Trajectory, Turn

EXACT = 1e-5
"""Largest difference of a log-probability in float32, in nats."""
KINDS = ("llama", "qwen2", "qwen3")


class Letters:
    """One letter a token. Of an earlier answer the template shows only what follows its last x, y or z."""

    special = {"<|im_start|>": 0, "<|im_end|>": 1}  # noqa: RUF012
    letters = string.ascii_lowercase + " .\n"

    def render(self, messages):
        shown = [re.split("[x-z]", m["content"])[-1] if m["role"] == "assistant" else m["content"] for m in messages]
        turns = [f"<|im_start|>{m['role']}\n{text}<|im_end|>\n" for m, text in zip(messages, shown, strict=True)]
        return "".join(turns) + "<|im_start|>assistant\n"

    def encode(self, text):
        for token, i in self.special.items():
            text = text.replace(token, chr(i))
        return [ord(c) if ord(c) < 2 else 2 + self.letters.index(c) for c in text]

    def decode(self, ids):
        names = {i: token for token, i in self.special.items()}
        return "".join(names.get(i) or self.letters[i - 2] for i in ids)


RENDERER = Renderer(Letters())
VOCAB = 2 + len(Letters.letters)
ENDLESS = copy.copy(RENDERER)
ENDLESS.close_id = -1  # no turn ends before it has its most tokens


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(models, kind):
    """Makes a policy over a fresh model of this kind."""

    def policy(deterministic=True, reuse=True, ends=True, **more):
        model, bias = models(kind, VOCAB), torch.zeros(VOCAB)
        if ends:  # with a probability of some 10 percent a token
            bias[RENDERER.close_id] = 1.3
            model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: logits + bias)
        return HFPolicy(model, RENDERER if ends else ENDLESS, deterministic=deterministic, reuse=reuse, **more)

    return policy


@pytest.fixture(params=["in order", "as it comes"])
def deterministic(request):
    return request.param == "in order"


@pytest.fixture(params=["reuse", "afresh"])
def reuse(request):
    return request.param == "reuse"


@dataclass
class Plan:
    """How episodes are played here."""

    groups: int = 2
    size: int = 3
    turns: int = 3
    new: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    haste: int = 0
    tasks: list | None = None

    @property
    def all(self):
        return self.tasks or [(g, m) for g in range(self.groups) for m in range(self.size)]


def question(plan, group, turn, said=""):
    """An observation, its length depending on group, turn and answer: rows are ragged."""
    rng = np.random.default_rng([plan.seed, group, turn, len(said)])
    return "".join(rng.choice(list(string.ascii_lowercase[:6]), rng.integers(0, 12)))


async def episode(session, plan, group, member, haste):
    session.begin((group, member), f"g{group}")
    row = Row(RENDERER)
    trajectory = Trajectory("test/Env-v0", group, group=f"g{group}", member=member, segments=row.segments)
    messages = [Message(role="system", content="you talk"), Message(role="user", content=question(plan, group, 0))]
    seed = member_seed(plan.seed, 0, group, member)
    for k in range(plan.turns + (group + member) % 2):
        start = row.prompt(messages, k)
        request = Request(list(row.segment.ids), plan.new, turn_rng(seed, k), plan.temperature, plan.top_p)
        generation = await session.generate(request)
        span = row.sampled(generation.ids, generation.logps, generation.version)
        text = RENDERER.decode_reply(generation.ids)
        trajectory.turns.append(Turn("", len(row.segments) - 1, start, *span, text, text, finish=generation.finish))
        messages += [
            Message(role="assistant", content=text),
            Message(role="user", content=question(plan, group, k + 1, text)),
        ]
        for _ in range(int(haste.integers(0, 4))):
            await asyncio.sleep(0)
    return trajectory


def play(policy, plan=None, shuffle=False):
    """All episodes of a plan at the same time, each in a session of its own."""
    plan = plan or Plan()
    haste = np.random.default_rng(plan.haste)

    async def one(session, group, member):
        try:
            return await episode(session, plan, group, member, haste)
        finally:
            session.close()

    async def run():
        order = haste.permutation(len(plan.all)).tolist() if shuffle else range(len(plan.all))
        sessions = {plan.all[i]: policy.open() for i in order}
        return await asyncio.gather(*(one(sessions[task], *task) for task in plan.all))

    return asyncio.run(asyncio.wait_for(run(), 60))


def worst(model, trajectories, temperature=1.0):
    """Largest difference between behaviour and recomputed log-probabilities, rows packed with shared prefixes."""
    (batch,) = pack([row for i, t in enumerate(trajectories) for row in rows_of(t, i)], 10**9)
    assert len(batch.targets) == sum(t.action_tokens for t in trajectories) > 0
    with torch.no_grad():
        out = token_logprobs(model, batch, temperature)
    return float((out.logp - batch.old_logp).abs().max())


def tokens_of(trajectories):
    return [[s.ids[u.start : u.stop] for u in t.turns for s in [t.segments[u.segment]]] for t in trajectories]


def assert_whole(trajectories, plan):
    """Turns are what the engine said they are."""
    for trajectory in trajectories:
        for turn in trajectory.turns:
            ids = trajectory.segments[turn.segment].ids[turn.start : turn.stop]
            assert 1 <= len(ids) <= plan.new
            assert (turn.finish == "stop") == (ids[-1] == RENDERER.close_id)
            assert RENDERER.close_id not in ids[:-1]
            assert turn.finish == "stop" or len(ids) == plan.new


@pytest.mark.parametrize("temperature", [1.0, 0.8, 1.7])
def test_log_probabilities_are_the_trainers(make, deterministic, reuse, temperature):
    policy, plan = make(deterministic, reuse), Plan(turns=5, temperature=temperature)
    trajectories = play(policy, plan)
    assert_whole(trajectories, plan)
    assert sum(len(t.segments) for t in trajectories) > len(trajectories), "nothing forked"
    assert len({len(row.ids) for t in trajectories for row in rows_of(t, 0)}) > 3, "the rows are not ragged"
    assert {u.finish for t in trajectories for u in t.turns} == {"stop", "length"}
    assert worst(policy.model, trajectories, temperature) <= EXACT
    assert policy.stats["sampled"] == sum(t.action_tokens for t in trajectories)
    if temperature != 1.0:
        assert worst(policy.model, trajectories, 1.0) > 100 * EXACT, "the test could not fail"


def test_log_probabilities_are_the_trainers_after_a_change_of_weights(make, models, kind, deterministic, reuse):
    policy = make(deterministic, reuse)
    before = play(policy)
    policy.load_weights(models(kind, VOCAB, seed=1).state_dict(), 5)
    assert policy.version == 5
    assert worst(policy.model, before) > 100 * EXACT, "the weights did not change"
    after = play(policy)
    assert worst(policy.model, after) <= EXACT
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.9)
    policy.weights_changed(6)
    last = play(policy, Plan(seed=1))
    assert worst(policy.model, last) <= EXACT
    for version, trajectories in ((0, before), (5, after), (6, last)):
        seen = {v for t in trajectories for s in t.segments for v, m in zip(s.versions, s.mask, strict=True) if m}
        assert seen == {version}


@pytest.mark.parametrize("how", ["load", "in place"])
def test_weights_that_change_between_the_turns_of_an_episode(make, models, kind, reuse, how):
    """Keys and values of the old weights must not be used again, not even those of another session."""
    policy = make(deterministic=False, reuse=reuse)
    new = models(kind, VOCAB, seed=2).state_dict()

    async def run():
        async def turn(session, ids, seed):
            return await session.generate(Request(ids, 6, turn_rng(seed, 0)))

        sessions = [policy.open() for _ in range(3)]
        for i, session in enumerate(sessions):
            session.begin((0, i), "g")
        prompt = RENDERER.tokenizer.encode("<|im_start|>user\nhello there<|im_end|>\n")
        first = await asyncio.gather(*(turn(s, list(prompt), i) for i, s in enumerate(sessions)))
        if how == "load":
            policy.load_weights(new, 3)
        else:
            with torch.no_grad():
                for name, parameter in policy.model.named_parameters():
                    parameter.copy_(new[name])
            policy.weights_changed(3)
        longer = [[*prompt, *g.ids, *prompt] for g in first]
        second = await asyncio.gather(
            *(turn(s, ids, i) for i, (s, ids) in enumerate(zip(sessions, longer, strict=True)))
        )
        for session in sessions:
            session.close()
        return first, longer, second

    first, longer, second = asyncio.run(run())
    assert [g.version for g in first] == [0] * 3
    assert [g.version for g in second] == [3] * 3
    for ids, generation in zip(longer, second, strict=True):
        expected = asyncio.run(policy.score([*ids, *generation.ids], len(ids)))
        assert np.abs(np.array(expected) - generation.logps).max() <= EXACT


def test_a_forgotten_notice_of_new_weights_would_be_seen(make):
    """Shows that the tests above can fail: stale keys and values give other log-probabilities."""
    policy = make()

    async def run():
        session = policy.open()
        ids = RENDERER.tokenizer.encode("<|im_start|>user\nhello there<|im_end|>\n")
        first = await session.generate(Request(ids, 6, turn_rng(0, 0)))
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(0.7)
        ids = [*ids, *first.ids, *ids]
        second = await session.generate(Request(ids, 6, turn_rng(0, 1)))
        session.close()
        return np.abs(np.array(await policy.score([*ids, *second.ids], len(ids))) - second.logps).max()

    assert asyncio.run(run()) > 100 * EXACT


def nucleus(logits, temperature, top_p):
    """By the book: the fewest most likely tokens that hold ``top_p`` of the mass, in Python, in float64."""
    p = np.exp(np.asarray(logits, dtype=np.float64) / temperature)
    p /= p.sum()
    kept, mass = [], 0.0
    for i in np.argsort(-p):
        if mass >= top_p:
            break
        kept.append(i)
        mass += p[i]
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.7), (0.7, 0.9), (1.5, 0.2), (1.0, 1e-6)])
def test_with_a_nucleus_the_log_probabilities_are_those_of_what_was_drawn_from(make, reuse, temperature, top_p):
    policy = make(reuse=reuse)
    trajectories = play(policy, Plan(temperature=temperature, top_p=top_p))
    (batch,) = pack([row for i, t in enumerate(trajectories) for row in rows_of(t, i)], 10**9)
    with torch.no_grad():
        hidden = hidden_states(policy.model, batch.ids, batch.positions, batch.layout)
        logits = logits_at(policy.model, hidden[batch.at]).numpy()
    rows = zip(logits, batch.targets.tolist(), strict=True)
    expected = [np.log(nucleus(row, temperature, top_p)[t]) for row, t in rows]
    assert np.abs(np.array(expected) - batch.old_logp.numpy()).max() <= EXACT
    if top_p < 1e-3:
        assert not batch.old_logp.any()


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_greedy_takes_the_likeliest_and_says_what_the_model_thinks_of_it(make, reuse, top_p):
    policy = make(reuse=reuse)
    trajectories = play(policy, Plan(temperature=0.0, top_p=top_p))
    assert worst(policy.model, trajectories) <= EXACT
    (batch,) = pack([row for i, t in enumerate(trajectories) for row in rows_of(t, i)], 10**9)
    with torch.no_grad():
        hidden = hidden_states(policy.model, batch.ids, batch.positions, batch.layout)
        logits = logits_at(policy.model, hidden[batch.at])
    taken = logits.gather(1, batch.targets[:, None])[:, 0]
    assert float((logits.max(1).values - taken).max()) <= EXACT
    again = play(policy, Plan(temperature=0.0, top_p=top_p, haste=5))
    assert tokens_of(again) == tokens_of(trajectories)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.6), (1.4, 0.8)])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_p):
    """Chi-square of 20 000 draws over 31 tokens; the limit is four standard deviations above its mean."""
    n = 20_000
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 1.5, VOCAB)).float()
    requests = [Request([0], 1, rng, temperature, top_p) for rng in np.random.default_rng(1).spawn(n)]
    tokens, logps = sample(logits.expand(n, -1).clone(), requests)
    expected = nucleus(logits, temperature, top_p)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert not counts[expected == 0].any()
    held = expected > 0
    chi = ((counts[held] - n * expected[held]) ** 2 / (n * expected[held])).sum()
    freedom = held.sum() - 1
    assert chi < freedom + 4 * (2 * freedom) ** 0.5
    np.testing.assert_allclose(logps, np.log(expected[tokens]), atol=EXACT)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("scale", [1.0, 1.1, 0.3])
def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_probability(uniform, scale):
    class Uniform:
        def random(self):
            return uniform

    logits = scale * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    logits[:, [0, 1, 6, 7]] = float("-inf")
    tokens, logps = sample(logits, [Request([0], 1, Uniform())] * 40)
    assert set(tokens) == {2 if uniform == 0 else 5}
    assert np.isfinite(logps).all()


def test_an_engine_draws_with_the_models_probabilities(models):
    """The same through the whole engine: the first token of 600 episodes of one prompt."""
    policy, n = HFPolicy(models("qwen3", VOCAB), RENDERER, deterministic=False), 600
    ids = RENDERER.tokenizer.encode("<|im_start|>user\nsay a letter<|im_end|>\n<|im_start|>assistant\n")

    async def run():
        async def one(i):
            session = policy.open()
            session.begin((0, i), "g")
            try:
                return (await session.generate(Request(ids, 1, turn_rng(i, 0)))).ids[0]
            finally:
                session.close()

        drawn = [t for start in range(0, n, 20) for t in await asyncio.gather(*map(one, range(start, start + 20)))]
        logp = [(await policy.score([*ids, t], len(ids)))[0] for t in range(VOCAB)]
        return drawn, np.exp(logp)

    drawn, expected = asyncio.run(run())
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    counts = np.bincount(drawn, minlength=VOCAB)
    chi = ((counts - n * expected) ** 2 / (n * expected)).sum()
    assert chi < VOCAB - 1 + 4 * (2 * (VOCAB - 1)) ** 0.5


def test_the_same_seeds_give_the_same_tokens_in_any_company(make, deterministic, reuse):
    together = play(make(deterministic, reuse), Plan(groups=3))
    for task in ((1, 1), (2, 0)):
        (alone,) = play(make(deterministic, reuse), Plan(tasks=[task]))
        (same,) = (t for t in together if (t.env_seed, t.member) == task)
        assert tokens_of([alone]) == tokens_of([same])
        for one, two in zip(alone.segments, same.segments, strict=True):
            assert one.ids == two.ids
            np.testing.assert_allclose(one.logps, two.logps, atol=EXACT)
    small = play(make(deterministic, reuse, prefill_budget=10), Plan(groups=3))
    assert tokens_of(small) == tokens_of(together)


def test_in_order_even_the_last_bit_does_not_depend_on_haste(make, reuse):
    """Nor on which slot an episode happens to get."""
    runs = [play(make(True, reuse), Plan(groups=3, haste=h), shuffle=h > 0) for h in range(3)]
    for other in runs[1:]:
        assert [t.segments for t in other] == [t.segments for t in runs[0]]


def test_seeds_differ(make):
    trajectories = play(make(), Plan(groups=1, size=6))
    assert len({str(t) for t in tokens_of(trajectories)}) == 6
    assert tokens_of(play(make(), Plan(groups=1, size=6, seed=1))) != tokens_of(trajectories)


def test_a_groups_prompt_is_computed_once(make, deterministic):
    policy, size = make(deterministic, ends=False), 5
    plan = Plan(groups=1, size=size, turns=1, tasks=[(0, m) for m in range(0, 2 * size, 2)])
    trajectories = play(policy, plan)
    prompt = trajectories[0].turns[0].start
    assert {t.turns[0].start for t in trajectories} == {prompt}
    assert policy.stats["prefilled"] == prompt + size - 1
    assert policy.stats["reused"] == (size - 1) * (prompt - 1)
    policy = make(deterministic, reuse=False, ends=False)
    play(policy, plan)
    assert policy.stats["prefilled"] == size * prompt
    assert policy.stats["reused"] == 0


def test_what_a_turn_computed_is_not_computed_again(make):
    policy = make()
    (trajectory,) = play(policy, Plan(tasks=[(0, 0)], turns=4))
    new = 0
    for turn, last in zip(trajectory.turns, [None, *trajectory.turns], strict=False):
        same = last is not None and last.segment == turn.segment
        ids = trajectory.segments[turn.segment].ids[: turn.start]
        old = trajectory.segments[last.segment].ids[: last.stop - 1] if last else []
        common = next((i for i, (a, b) in enumerate(zip(ids, old, strict=False)) if a != b), min(len(ids), len(old)))
        assert not same or common == last.stop - 1
        new += len(ids) - common
    assert policy.stats["prefilled"] == new
    assert policy.stats["reused"] == sum(t.start for t in trajectory.turns) - new


def test_groups_that_start_alike_compute_what_they_share_once(make):
    policy = make()
    trajectories = play(policy, Plan(turns=1, tasks=[(0, 0), (2, 0), (4, 0)]))
    prompts = [t.segments[0].ids[: t.turns[0].start] for t in trajectories]
    first, *others = prompts
    shared = [next((i for i, (x, y) in enumerate(zip(first, p, strict=False)) if x != y), len(first)) for p in others]
    assert min(shared) >= 16
    assert policy.stats["reused"] >= sum(min(n, len(p) - 1) for n, p in zip(shared, others, strict=True))
    assert policy.stats["prefilled"] == sum(len(p) for p in prompts) - policy.stats["reused"]
    plain = make(reuse=False)
    for a, b in zip(trajectories, play(plain, Plan(turns=1, tasks=[(0, 0), (2, 0), (4, 0)])), strict=True):
        assert a.segments[0].ids == b.segments[0].ids
        assert a.segments[0].logps == pytest.approx(b.segments[0].logps, abs=1e-5)


def test_a_donor_that_waits_itself_gives_nothing_stale(make):
    """A short beginning that all share, a longer one that two share; before that prompts that share no token with them.

    The second waits for the first to compute the beginning, the third for the second: not for what is left in its slot.
    """
    policy = make(deterministic=False, ends=False)
    encode = RENDERER.tokenizer.encode

    async def run():
        sessions = [policy.open() for _ in range(3)]
        for key, session in enumerate(sessions):
            session.begin((key,), "g")
        old = [encode(c + "abcdefghij" * 6) for c in "xyw"]
        await asyncio.gather(
            *(s.generate(Request(ids, 2, turn_rng(0, 0))) for s, ids in zip(sessions, old, strict=True))
        )
        new = [encode(f"<|im_start|>user\nanother prompt {rest}") for rest in ("a", "of two", "of two again")]
        got = await asyncio.gather(
            *(
                s.generate(Request(list(ids), 5, turn_rng(i, 1)))
                for i, (s, ids) in enumerate(zip(sessions, new, strict=True))
            )
        )
        for session in sessions:
            session.close()
        return [(g.logps, await policy.score([*ids, *g.ids], len(ids))) for g, ids in zip(got, new, strict=True)]

    for logps, expected in asyncio.run(run()):
        np.testing.assert_allclose(logps, expected, atol=EXACT)


def test_scores_are_the_logits_of_the_model(make, models, kind):
    policy, stock = make(ends=False), models(kind, VOCAB, ready=False)
    ids = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()
    with torch.no_grad():
        logp = stock(torch.tensor([ids])).logits[0].log_softmax(-1)
    for start in (1, 17, 39):
        expected = [float(logp[j - 1, ids[j]]) for j in range(start, 40)]
        np.testing.assert_allclose(asyncio.run(policy.score(ids, start)), expected, atol=EXACT)
    assert asyncio.run(policy.score(ids, 40)) == []
    for start in (0, -1, 41):
        with pytest.raises(EngineError, match=f"from position {start}"):
            asyncio.run(policy.score(ids, start))
    with pytest.raises(EngineError, match="scoring failed"):
        asyncio.run(policy.score([1, VOCAB], 1))


def request(text="hello there my friend", new=6, seed=0):
    return Request(RENDERER.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n"), new, turn_rng(seed, 0))


async def last_answer(session, ask):
    """One turn, after which the session is closed: nobody waits for it any more."""
    try:
        return (await session.generate(ask)).ids
    finally:
        session.close()


def opened(policy, n):
    sessions = [policy.open() for _ in range(n)]
    for i, session in enumerate(sessions):
        session.begin((i,), "g")
    return sessions


def finish(run):
    return asyncio.run(asyncio.wait_for(run, 30))


def answers(policy, n=3, new=6):
    """What ``n`` sessions answer to the usual requests, nobody disturbing them."""

    async def run():
        sessions = opened(policy, n)
        return await asyncio.gather(*(last_answer(s, request(new=new, seed=i)) for i, s in enumerate(sessions)))

    return finish(run())


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_cancelled_turn_does_not_disturb_the_others(make, deterministic, after):
    policy = make(deterministic, ends=False)
    expected = answers(make(deterministic, ends=False), new=20)

    async def run():
        sessions = opened(policy, 3)
        tasks = {i: asyncio.create_task(last_answer(sessions[i], request(new=20, seed=i))) for i in (0, 2)}
        doomed = asyncio.create_task(sessions[1].generate(request(new=20, seed=1)))
        for _ in range(after):
            await asyncio.sleep(0)
        doomed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doomed
        # Its session plays on, as a rollout's does after a deadline: the same turn again, from the start.
        sessions[1].begin((1,), "g")
        tasks[1] = asyncio.create_task(last_answer(sessions[1], request(new=20, seed=1)))
        return [await tasks[i] for i in range(3)]

    assert finish(run()) == expected
    assert answers(policy, new=20) == expected


def test_a_turn_asked_for_again_before_the_cancelled_one_is_gone(make):
    policy = make(ends=False)
    expected = answers(make(ends=False), n=1)

    async def run():
        session = policy.open()
        session.begin((0,), "g")
        first = asyncio.create_task(session.generate(request(seed=9)))
        await asyncio.sleep(0)
        second = asyncio.create_task(session.generate(request(seed=0)))
        first.cancel()  # what this wakes runs after the second has asked
        with contextlib.suppress(asyncio.CancelledError):
            await first
        got = await second
        session.close()
        return got.ids

    assert [finish(run())] == expected


class Broken(Exception):
    """What a model raises here."""


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_exception_in_the_model_reaches_all_who_wait_and_the_engine_goes_on(make, deterministic, at, monkeypatch):
    policy = make(deterministic, ends=False)
    expected = answers(make(deterministic, ends=False))
    decoder, calls = policy.model.get_decoder(), []

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            raise Broken("out of memory")
        return type(decoder).forward(decoder, *args, **kwargs)

    monkeypatch.setattr(decoder, "forward", forward)

    async def run():
        sessions = opened(policy, 3)
        asks = (s.generate(request(seed=i)) for i, s in enumerate(sessions))
        got = await asyncio.gather(*asks, return_exceptions=True)
        assert all(isinstance(e, EngineError) and "out of memory" in str(e) for e in got)
        # The same sessions, without begin: nothing half-written may be taken for computed.
        return await asyncio.gather(*(last_answer(s, request(seed=i)) for i, s in enumerate(sessions)))

    assert finish(run()) == expected


def test_broken_weights_are_an_error_and_leave_nothing_behind(make, deterministic):
    policy = make(deterministic, ends=False)
    expected = answers(make(deterministic, ends=False))
    good = copy.deepcopy(policy.model.state_dict())
    policy.load_weights({k: torch.full_like(v, float("nan")) for k, v in good.items()}, 1)
    long = request("a long prompt " * 5, new=20)

    async def fail():
        sessions = [policy.open() for _ in range(3)]
        got = await asyncio.gather(*(s.generate(long) for s in sessions), return_exceptions=True)
        for session in sessions:
            session.close()
        return got

    failed = finish(fail())
    assert all(isinstance(e, EngineError) and "not finite" in str(e) for e in failed)
    policy.load_weights(good, 2)
    assert answers(policy) == expected
    assert worst(policy.model, play(policy)) <= EXACT


def test_weights_that_do_not_fit(make):
    policy = make(ends=False)
    state = dict(policy.model.state_dict())
    state.pop(next(iter(state)))
    with pytest.raises(EngineError, match="weights of version 4 do not fit the model"):
        policy.load_weights(state, 4)
    assert policy.version == 0
    assert worst(policy.model, play(policy)) <= EXACT


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Request([], 4, turn_rng(0, 0)), EngineError, "prompt of one token"),
        (Request([1], 0, turn_rng(0, 0)), EngineError, "room for one new token"),
        (Request([1, VOCAB], 4, turn_rng(0, 0)), EngineError, "does not know"),
        (Request([1, -1], 4, turn_rng(0, 0)), EngineError, "does not know"),
        (Request([1] * 1024, 1, turn_rng(0, 0)), ContextFull, "1024"),
    ],
    ids=["no prompt", "no room", "unknown token", "negative token", "too long"],
)
def test_a_bad_request_fails_alone(make, deterministic, bad, error, message):
    policy = make(deterministic, ends=False)
    expected = answers(make(deterministic, ends=False))

    async def run():
        *sessions, other = opened(policy, 4)
        waiting = [asyncio.create_task(last_answer(s, request(seed=i))) for i, s in enumerate(sessions)]
        with pytest.raises(error, match=message):
            await last_answer(other, bad)
        return [await w for w in waiting]

    assert finish(run()) == expected


def test_the_whole_context_can_be_used(make):
    policy = make(ends=False)

    async def run():
        session = policy.open()
        ids = np.random.default_rng(0).integers(2, VOCAB, 1020).tolist()
        got = await session.generate(Request(ids, 4, turn_rng(0, 0)))
        session.close()
        return ids, got

    ids, got = asyncio.run(run())
    np.testing.assert_allclose(got.logps, asyncio.run(policy.score([*ids, *got.ids], 1020)), atol=EXACT)


def test_a_session_plays_one_episode_after_the_other(make, deterministic, reuse):
    policy = make(deterministic, reuse)
    plan, haste = Plan(), np.random.default_rng(0)

    async def run():
        sessions = [policy.open(), policy.open()]

        async def work(session, tasks):
            out = [await episode(session, plan, *task, haste) for task in tasks]
            session.close()
            return out

        halves = await asyncio.gather(*(work(s, plan.all[i::2]) for i, s in enumerate(sessions)))
        return [t for half in halves for t in half]

    trajectories = sorted(asyncio.run(asyncio.wait_for(run(), 60)), key=lambda t: (t.env_seed, t.member))
    assert worst(policy.model, trajectories) <= EXACT
    assert tokens_of(trajectories) == tokens_of(play(make(deterministic, reuse), plan))


def test_sessions_are_opened_and_closed_in_any_order(make, deterministic):
    policy = make(deterministic, ends=False)
    expected = answers(make(deterministic, ends=False), n=4)

    async def run():
        a, b, c = (policy.open() for _ in range(3))
        b.close()
        b.close()
        d, e = policy.open(), policy.open()
        b.close()  # the slot is another's now
        assert len({s.slot for s in (a, c, d, e)}) == 4
        c.close()
        f, g = policy.open(), policy.open()
        live = [g, d, a, e]
        for i, session in enumerate(live):
            session.begin((i,), "g")
        waiting = [asyncio.create_task(last_answer(s, request(seed=i))) for i, s in enumerate(live)]
        await asyncio.sleep(0)
        f.close()  # it never asked: the others go on without it
        got = [await w for w in waiting]
        with pytest.raises(EngineError, match="closed"):
            await a.generate(request())
        return got

    assert finish(run()) == expected
    assert not policy._sessions
    assert not any(policy.cache.tokens)


def test_a_session_closed_while_it_writes(make):
    policy = make(deterministic=False, ends=False)

    async def run():
        a, b = policy.open(), policy.open()
        first = asyncio.create_task(a.generate(request(new=50)))
        second = asyncio.create_task(b.generate(request(new=20, seed=1)))
        for _ in range(3):
            await asyncio.sleep(0)
        a.close()
        with pytest.raises(EngineError, match="closed while it wrote"):
            await first
        assert (await second).ids
        b.close()

    finish(run())


def test_a_session_writes_one_turn_at_a_time(make):
    policy = make(ends=False)

    async def run():
        session = policy.open()
        first = asyncio.create_task(session.generate(request()))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="another turn"):
            await session.generate(request())
        assert (await first).ids
        session.close()

    finish(run())


def test_many_sessions_grow_the_cache(make):
    policy = make(ends=False)
    trajectories = play(policy, Plan(groups=5, size=4, turns=2, new=30))
    assert worst(policy.model, trajectories) <= EXACT
    assert policy.cache.keys[0].shape[0] >= 20


def test_weights_of_the_policy_are_those_of_the_trainer(make):
    """After an optimizer step on the shared module the policy decodes with what was learned."""
    policy = make(ends=False)
    trajectories = play(policy)
    (batch,) = pack([row for i, t in enumerate(trajectories) for row in rows_of(t, i)], 10**9)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    token_logprobs(policy.model, batch).logp.mean().backward()
    optimizer.step()
    policy.weights_changed(1)
    assert worst(policy.model, trajectories) > 100 * EXACT
    assert worst(policy.model, play(policy)) <= EXACT


def test_half_precision(models):
    """Loosely: a log-probability of bfloat16 has two digits."""
    policy = HFPolicy(models("llama", VOCAB, dtype=torch.bfloat16), RENDERER)
    assert worst(policy.model, play(policy)) <= 0.1


SCRIPTED = {
    "canned": lambda: CannedPolicy(["look", "go north"], RENDERER),
    "random": lambda: RandomPolicy(RENDERER),
    "expert": lambda: ExpertPolicy(RENDERER),
    "noisy expert": lambda: ExpertPolicy(RENDERER, noise=0.5),
}
INFO = {"admissible_commands": ["look", "go north", "open door"], "expert_action": "go north"}


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_policies(name):
    policy = SCRIPTED[name]()
    assert policy.version == -1
    assert policy.context_limit is None

    async def run():
        out = []
        session, other = policy.open(), policy.open()
        for number in (0, 0, 1):
            session.begin((number,), "g")
            other.begin((9,), "g")
            said = []
            for k in range(4):
                ask = Request([0], 8, turn_rng(number, k), info=INFO, encode_action=RENDERER.encode_reply)
                generation, _ = await asyncio.gather(session.generate(ask), other.generate(copy.deepcopy(ask)))
                assert generation.ids[-1] == RENDERER.close_id
                assert generation.logps == [0.0] * len(generation.ids)
                assert (generation.version, generation.finish) == (-1, "stop")
                said.append(RENDERER.decode_reply(generation.ids))
            out.append(said)
        session.close()
        other.close()
        return out

    first, same, another = asyncio.run(run())
    assert first == same
    assert set(first) <= set(INFO["admissible_commands"])
    if name == "canned":
        assert first == another == ["look", "go north", "go north", "go north"]
    if name == "expert":
        assert first == another == ["go north"] * 4
    if name == "random":
        assert first != another
    with pytest.raises(EngineError, match="cannot score"):
        asyncio.run(policy.score([1, 2], 1))
    with pytest.raises(EngineError, match="no weights"):
        policy.load_weights({}, 1)


def test_scripted_policies_draw_evenly_and_need_what_they_read():
    policy = RandomPolicy(RENDERER)
    drawn = [policy.act(INFO, 0, turn_rng(i, 0)) for i in range(3000)]
    counts = np.array([drawn.count(c) for c in INFO["admissible_commands"]])
    assert ((counts - 1000) ** 2 / 1000).sum() < 2 + 4 * 2
    noisy = ExpertPolicy(RENDERER, noise=0.3)
    share = np.mean([noisy.act(INFO, 0, turn_rng(i, 0)) != "go north" for i in range(3000)])
    assert abs(share - 0.2) < 0.03
    with pytest.raises(ConfigError):
        CannedPolicy([], RENDERER)
    with pytest.raises(ConfigError):
        ExpertPolicy(RENDERER, noise=-0.1)
    for needy in (policy, ExpertPolicy(RENDERER)):
        with pytest.raises((ConfigError, EngineError)):
            needy.act({}, 0, turn_rng(0, 0))
