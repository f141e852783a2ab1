"""A Cicero-like player: thirteen acts, heard as what they are, drawn from a strategy and put into words by a model."""

import asyncio

import numpy as np
import pytest
import torch
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_rules import ROLES, SEER, WOLF, Rules
from agentgym.trainers.lspo_acts import HIDE, IDLE, KINDS, TARGET, ActEar, act_rules, cicero, solve
from agentgym.trainers.lspo_play import StrategicPolicy
from helpers_policies import tiny_policy

from agentgym.deep_cfr import DeepCFRConfig
from agentgym.errors import ConfigError
from agentgym.policies.base import Generation, Request
from agentgym.renderer import ByteTokenizer, Renderer
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay
from agentgym.types import Message

SMALL = DeepCFRConfig(
    traversals=1, depth=1, scale=300, hidden=(8,), steps=3, batch=8, capacity=2000, policy_capacity=2000
)


@pytest.fixture(scope="module")
def strategist(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("acts")
    made = solve(Rules(), SMALL, 2, folder)
    again = solve(Rules(), SMALL, 2, folder)  # read, not solved again
    x = np.ones((3, made.rules.width), np.float32)
    mask = np.ones((3, made.rules.actions), bool)
    assert np.array_equal(made.solver.average(x, mask), again.solver.average(x, mask))
    return made


def test_thirteen_acts():
    rules = act_rules(Rules())
    acts = sum(rules.n if stance else 1 for stance in rules.stances[SEER])
    assert (len(KINDS), acts) == (7, 13)
    assert rules.stances[WOLF] == rules.stances[SEER]
    assert rules.codes == 7


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("", IDLE, 7),
        ("Nice weather.", IDLE, 7),
        ("I am the Seer.", TARGET + 1 + ROLES.index("Seer"), 7),
        ("I'm a simple villager, believe me.", TARGET + 1 + ROLES.index("Villager"), 7),
        ("I am the Seer. I saw that player_3 is a Werewolf.", TARGET, 3),
        ("I will not reveal my role today.", HIDE, 7),
    ],
)
def test_speeches_as_acts(text, kind, target):
    heard = ActEar(7)(0, SEER, text)
    assert heard == (kind, kind, target)


class Speaker:
    """A model that notes what it is asked."""

    def __init__(self):
        self.renderer, self.live, self.context_limit, self.asked = Renderer(ByteTokenizer()), True, None, []

    def open(self):
        return self

    async def generate(self, request):
        self.asked.append(request.messages[-1]["content"])
        return Generation(self.renderer.encode_reply("fine"), [0.0] * 5, 0, "stop")


def test_the_model_is_told_the_act(strategist):
    env = raw_env(brief=True)
    env.reset(seed=0)
    while env.infos[env.agent_selection]["phase"] != "discussion":
        env.step(PLAYERS["scripted"](env.infos[env.agent_selection]["view"], np.random.default_rng(0)))
    speaker = Speaker()
    messages = [Message(role="system", content="Rules."), Message(role="user", content="Speak.")]
    kinds = set()
    for seed in range(60):
        request = Request([1], 9, np.random.default_rng(seed), info=env.infos[env.agent_selection], messages=messages)
        asyncio.run(cicero(speaker, strategist).write(speaker, request))
        told = speaker.asked[-1]
        assert told.startswith("Speak.\n\nWhat you say must do this and nothing else: ")
        assert "{target}" not in told
        kinds.add(told)
    assert len(kinds) > 6
    assert any("accuse player_" in told for told in kinds)
    with pytest.raises(ConfigError, match="intents"):
        StrategicPolicy(speaker, strategist, "intent")


def test_it_plays_with_a_tiny_model(strategist):
    seats = {"all": Seat(cicero(tiny_policy(), strategist), context="window:1")}
    config = RolloutConfig(max_turns=60, max_new_tokens=5, context_limit=2000, concurrency=2)
    table = SelfPlay(lambda: raw_env(brief=True, max_rounds=2), seats, config, lambda _, i: dict.fromkeys(i, "all"))
    for game in table.collect(group_tasks(0, 0, 2, 1)):
        assert game.error is None
        assert game.metrics["parse/fallbacks"] == 0
