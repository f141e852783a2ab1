"""SLA's chooser: its shapes, what PPO makes of it, and an update from games that were played."""

import json

import numpy as np
import pytest
import torch
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_rules import Rules
from agentgym.envs.werewolf_sla import SLAPolicy
from agentgym.trainers.sla import Chooser, Learning, Step, _batch, update

from agentgym.policies.base import Generation
from agentgym.renderer import ByteTokenizer, Renderer
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay

WIDTH = 12


class Letters:
    """Letters of a text, counted."""

    name, width = "letters", WIDTH

    def encode(self, texts):
        counts = np.array([[text.count(chr(97 + i)) for i in range(WIDTH)] for text in texts], np.float32) + 1e-3
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def step(rng, chooser, n=3):
    vectors = rng.normal(size=(n + 1, WIDTH)).astype(np.float32)
    return Step(rng.normal(size=chooser.inputs).astype(np.float32), vectors[0], vectors[1:], 0, 0.0, 0.0)


def test_the_order_of_candidates_does_not_matter_and_missing_ones_have_no_part():
    chooser, rng = Chooser(WIDTH, 7), np.random.default_rng(0)
    assert chooser.inputs == 246
    one = step(rng, chooser)
    turned = one._replace(candidates=one.candidates[::-1].copy())
    logp, value = chooser(*_batch([one, turned]))
    assert torch.allclose(logp[0], logp[1].flip(0), atol=1e-5)
    assert torch.allclose(value[0], value[1], atol=1e-5)
    alone, _ = chooser(*_batch([one]))
    beside, _ = chooser(*_batch([one, step(rng, chooser, 5)]))
    assert torch.allclose(beside[0, :3], alone[0], atol=1e-5)
    assert torch.isneginf(beside[0, 3:]).all()


def test_it_learns_to_take_what_pays():
    """Of three candidates one is marked and pays 1; it is taken one time in three at first."""
    chooser, rng = Chooser(WIDTH, 4, heads=2), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(chooser.parameters(), 1e-2)

    def play(n):
        steps, right = [step(rng, chooser) for _ in range(n)], rng.integers(3, size=n)
        for one, marked in zip(steps, right, strict=True):
            one.candidates[marked, 0] = 3.0
        with torch.inference_mode():
            logp, value = (x.numpy() for x in chooser(*_batch(steps)))
        taken = (np.exp(logp).cumsum(1) > rng.random((n, 1))).argmax(1)
        made = zip(steps, taken, logp, value, strict=True)
        done = [one._replace(taken=int(t), logp=float(row[t]), value=float(v)) for one, t, row, v in made]
        return done, (taken == right).astype(float)

    first = play(200)[1].mean()
    for _ in range(12):
        steps, rewards = play(64)
        found = update(chooser, optimizer, steps, rewards - [s.value for s in steps], rewards)
    assert found["sla/choices"] == 64
    last = play(200)[1].mean()
    assert first < 0.6
    assert last > 0.85


class Talker:
    """A model whose answers differ."""

    def __init__(self):
        self.renderer, self.live, self.version, self.name = Renderer(ByteTokenizer()), True, 0, "talker"
        self.context_limit, self.env_options = None, {}

    def open(self):
        return self

    def begin(self, key, group):
        pass

    def close(self):
        pass

    async def generate(self, request):
        commands = list(request.info["admissible_commands"])
        some = [{"action": str(action)} for action in request.rng.permutation(commands)[:3]]
        text = "abcdefghijkl"[int(request.rng.integers(12)) :] if not commands else json.dumps({"candidates": some})
        return Generation(self.renderer.encode_reply(text), [-1.0] * (len(text) + 1), 0, "stop")


def test_an_update_from_games():
    learning = Learning(Chooser(WIDTH, 4, heads=2), Letters(), Rules(4))
    config = RolloutConfig(max_turns=60, concurrency=3)
    seats = {"sla": Seat(SLAPolicy(Talker(), choose=learning), context="window:1")}
    table = SelfPlay(
        lambda: raw_env(players=4, brief=True), seats, config, lambda _, infos: dict.fromkeys(infos, "sla")
    )
    before = [p.detach().clone() for p in learning.chooser.parameters()]
    games = table.collect(group_tasks(0, 0, 4, 1))
    made = len(learning.steps)
    chosen = [t for g in games for x in g.trajectories.values() for t in x.turns if len(t.candidates) > 1]
    assert made == len(chosen) > 20
    found = learning.learn(games)
    assert found["sla/choices"] == made
    assert not learning.steps
    assert any(not torch.equal(a, b) for a, b in zip(before, learning.chooser.parameters(), strict=True))
    assert learning.learn(games) == {}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
