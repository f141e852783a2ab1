"""Prompted players of Werewolf: what they are asked, what is recorded of it, and whole games in their seats."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest
from agentgym.envs import werewolf_prompts as prompts
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_agents import ReActPolicy, ReConPolicy
from agentgym.envs.werewolf_players import STYLES, PlayerPolicy
from agentgym.envs.werewolf_predict import PredictingPolicy, accuracy, guess, read
from agentgym.envs.werewolf_record import Own, Speech, View
from agentgym.envs.werewolf_rules import ROLES, SEER, WOLF, Rules
from agentgym.envs.werewolf_sla import Deduction, Memory, SLAPolicy, read_deductions
from helpers_policies import tiny_policy

from agentgym.errors import ConfigError
from agentgym.policies.base import Generation, Request
from agentgym.policies.specs import make_policy
from agentgym.renderer import ByteTokenizer, Renderer
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay
from agentgym.types import Message

PLAYER = STYLES["scripted"]


class Reader:
    """A model that notes what it is asked and answers by rule: a JSON answer, or canned text for a question."""

    def __init__(self, answers=()):
        self.renderer, self.live, self.version, self.name = Renderer(ByteTokenizer()), True, 0, "reader"
        self.context_limit, self.env_options = None, {}
        self.answers, self.asked = dict(answers), []

    def open(self):
        return self

    def begin(self, key, group):
        pass

    def close(self):
        pass

    async def generate(self, request):
        last = str(request.messages[-1]["content"])
        self.asked.append(list(request.messages))
        text = next((text for cue, text in self.answers.items() if cue in last), None)
        if text is None:
            command = (request.info.get("admissible_commands") or [None])[0]
            text = json.dumps({"statement": "hello"} if command is None else {"action": command})
        ids = self.renderer.encode_reply(text)
        return Generation(ids, [-0.5] * len(ids), 0, "stop", usage={"completion_tokens": len(ids)})


def ask(policy, *told, commands=(), brief=False, seed=0):
    messages = [Message(role="system", content="Rules."), *(Message(role="user", content=text) for text in told)]
    request = Request([1], 50, np.random.default_rng(seed), messages=messages)
    request.info = {"admissible_commands": list(commands), "brief": brief}
    session = policy.open()
    session.begin((1, 2, 3), "g")
    return asyncio.run(session.generate(request)), request


def text_of(generation):
    return Renderer(ByteTokenizer()).decode_reply(generation.ids)


def test_react_is_one_prompt():
    inner = Reader()
    found, request = ask(ReActPolicy(inner), "It is your turn to speak.")
    assert [m["content"] for m in inner.asked[0]] == ["Rules.", f"It is your turn to speak.\n\n{prompts.REACT}"]
    assert request.messages[-1]["content"] == "It is your turn to speak."
    assert text_of(found) == '{"statement": "hello"}'
    assert all(map(math.isnan, found.logps))
    assert found.version == ReActPolicy(inner).version == -1


def test_recon_thinks_of_the_others_and_of_how_they_see_it():
    inner = Reader({prompts.RECON_OTHERS: "player_1 lies.", prompts.RECON_SELF: "They would laugh."})
    found, _ = ask(ReConPolicy(inner), "Vote.", commands=["vote player_1"])
    conversation = [m["content"] for m in inner.asked[-1]]
    assert len(inner.asked) == 4
    assert conversation == [
        *("Rules.", f"Vote.\n\n{prompts.RECON_OTHERS}", "player_1 lies.", prompts.RECON_DRAFT),
        *('{"action": "vote player_1"}', prompts.RECON_SELF, "They would laugh.", prompts.RECON_FINAL),
    ]
    assert found.usage["thoughts"] == 3
    assert found.usage["completion_tokens"] > 3 * len(found.ids) - 60
    assert text_of(found) == '{"action": "vote player_1"}'


def test_without_room_the_game_s_own_prompt_is_answered():
    inner = Reader()
    inner.context_limit = 60
    found, _ = ask(ReConPolicy(inner), "Speak.")
    assert [m["content"] for m in inner.asked[0]] == ["Rules.", "Speak."]
    assert found.usage["thoughts_lost"] == 1
    assert all(map(math.isnan, found.logps))


# ---- SLA -------------------------------------------------------------------------------------------------

RECORD = """You are player_0. Your role: Seer.
Night 1: you saw that player_2 is a Werewolf.
Day 1: nobody was killed last night.
Day 1: player_1 said: "I trust player_2."
Day 1: player_2 said: "I am the Doctor."
It is day 1. Living players: player_0, player_1, player_2.
It is your turn to speak. Answer with {"reasoning": "...", "statement": "..."}."""
DEDUCED = {
    "player_1": {"role": "Villager", "confidence": 7, "reasoning": "", "evidence": [4]},
    "player_2": {"role": "Werewolf", "confidence": 12, "evidence": "2"},
    "player_3": {"role": "Jester", "confidence": "much"},
    "judge": 3,
}


def test_reliability():
    assert Deduction("Werewolf", 10).reliability == 1
    assert Deduction("Seer", 9).reliability == 9
    assert Deduction(None, 9).reliability == 6
    found = read_deductions(f"Well: {json.dumps(DEDUCED)} so it is.")
    assert found == {
        "player_1": Deduction("Villager", 7, (4,)),
        "player_2": Deduction("Werewolf", 10),
        "player_3": Deduction(None, 5),
    }
    assert read_deductions("no idea {") == {}


def test_the_record_is_parted_by_reliability_and_forgets_what_is_never_cited():
    memory, messages = Memory(), [Message(role="user", content=RECORD)]
    first = memory.record(messages)
    assert [number for number, _ in first["facts"]] == [1, 2, 3]
    assert (first["truths"], [number for number, _ in first["deceptions"]]) == ([], [4, 5])
    memory.learn(first, read_deductions(json.dumps(DEDUCED)))
    second = memory.record(messages)
    assert [line for _, line in second["truths"]] == ['Day 1: player_1 said: "I trust player_2."']
    assert second["deceptions"] == []
    brief = Memory().record([Message(role="user", content="player_3 seer\nplayer_1: hello\nvotes 1>2\nsay?")])
    assert [len(lines) for lines in brief.values()] == [2, 0, 1]


def test_sla_deduces_then_chooses_a_statement():
    inner = Reader({"Do not answer yet. Deduce": json.dumps(DEDUCED)})
    chosen = []

    def choose(choice):
        chosen.append(choice)
        return 2

    found, _ = ask(SLAPolicy(inner, 3, choose), RECORD)
    asked = [str(m[-1]["content"]) for m in inner.asked]
    assert len(asked) == 4
    assert "5. Day 1: player_2 said" in asked[0]
    assert "player_2: Werewolf, confidence 10" in asked[1]
    assert asked[2:] == [prompts.SLA_ANOTHER] * 2
    assert len(found.candidates) == 3
    assert chosen[0].texts == ['{"statement": "hello"}'] * 3
    assert (chosen[0].at, chosen[0].deduced["player_1"].confidence) == (("g", (1, 2, 3), 0), 7)
    assert found.usage["deduced"] == 1
    assert found.candidates[0].logp == pytest.approx(-0.5 * len(found.ids))


def test_sla_proposes_actions_in_one_prompt():
    listed = [{"action": "Vote player_2", "reasoning": "why"}, {"action": "vote player_9"}, {"action": "abstain"}, 5]
    inner = Reader({"Propose": json.dumps({"candidates": listed})})
    commands = ["vote player_1", "vote player_2", "abstain"]
    found, _ = ask(SLAPolicy(inner, 3, lambda choice: 0), "Vote.", commands=commands)
    assert len(found.candidates) == 2
    assert json.loads(text_of(found)) == {"reasoning": "why", "action": "vote player_2"}
    assert found.usage["undeduced"] == 1
    found, _ = ask(SLAPolicy(inner, 3, lambda choice: 1), "Vote.", commands=commands, brief=True)
    assert text_of(found) == "abstain"
    found, _ = ask(SLAPolicy(Reader(), 3), "Vote.", commands=commands)
    assert (json.loads(text_of(found)), len(found.candidates)) == ({"action": "vote player_1"}, 1)


# ---- predictions -----------------------------------------------------------------------------------------


def seen(role=SEER, events=(), seat=0):
    return View(seat, role, (3,) if role == WOLF else (), 7, 1, 2, tuple(range(7)), tuple(events), ("abstain",))


def test_scripted_guesses():
    roles = guess(seen(SEER, [Own(1, "see", 4, True), Speech(1, 2, "I am the Doctor.")]), PLAYER)
    assert (roles[4], roles[2]) == (WOLF, ROLES.index("Doctor"))
    assert sorted(roles) == [1, 2, 3, 4, 5, 6]
    assert list(roles.values()).count(WOLF) == 2
    wolf = guess(seen(WOLF, [Speech(1, 5, "I am the Seer.")]), PLAYER)
    assert (wolf[3], wolf[5], list(wolf.values()).count(WOLF)) == (WOLF, SEER, 1)


def test_reading_predictions():
    text = 'I say {"player_1": "werewolf", "player_0": "Seer", "player_2": "Jester", "player_8": "Seer"}'
    assert read(text, seen()) == {1: WOLF}
    assert read("", seen()) == {}


def games(policy, wrapped=False, count=3, **settings):
    def seat():
        made = policy()
        return Seat(PredictingPolicy(made) if wrapped else made, context="window:1")

    config = RolloutConfig(max_turns=60, max_new_tokens=6, context_limit=4000, concurrency=2)
    table = SelfPlay(
        lambda: raw_env(parse_retries=1, **settings), {"all": seat()}, config, lambda _, i: dict.fromkeys(i, "all")
    )
    return table.collect(group_tasks(0, 0, count, 1))


def transcript(played):
    return [[(t.text, t.observation) for x in game.trajectories.values() for t in x.turns] for game in played]


@pytest.mark.parametrize("policy", [lambda: PlayerPolicy("scripted", True), tiny_policy], ids=["scripted", "tiny"])
def test_the_game_is_the_same_with_predictions(policy):
    settings = {"brief": True, "players": 4, "max_rounds": 2}
    plain, asked = (games(policy, wrapped, **settings) for wrapped in (False, True))
    assert transcript(plain) == transcript(asked)
    told = [t.info for game in asked for t in game.trajectories.values()]
    assert not any(key.startswith("predict") for game in plain for t in game.trajectories.values() for key in t.info)
    assert sum(key.startswith("predict") for info in told for key in info) > 5


def test_accuracy_counts_by_side_and_true_role():
    played = [list(g.trajectories.values()) for g in games(lambda: PlayerPolicy("scripted"), True, 8)]
    found = accuracy(played)
    assert set(found) == {f"predict/{s}/{r}" for s in ("wolves", "village") for r in (*ROLES, "overall")}
    assert found["predict/wolves/Werewolf"].mean == 1.0  # they know each other
    assert 0.3 < found["predict/village/overall"].mean < 1.0
    right = total = 0
    for seats in played:
        deal = next(int(t.info["actions"].split()[0]) for t in seats if "actions" in t.info)
        roles = [ROLES[role] for role in Rules().deals[deal][0]]
        for t in seats:
            if t.info.get("role") != "Werewolf":
                for key, value in t.info.items():
                    if key.startswith("predicted/"):
                        total += 1
                        right += roles[int(key.rpartition("/")[2])] == ROLES[value]
    assert total > 100
    assert found["predict/village/overall"].mean == right / total


# ---- whole games -----------------------------------------------------------------------------------------


def test_prompted_players_play_with_a_tiny_model():
    inner = tiny_policy()
    seats = {
        name: Seat(policy, context="window:1")
        for name, policy in (
            ("Werewolf", ReConPolicy(inner)),
            ("Seer", SLAPolicy(inner)),
            ("Villager", ReActPolicy(inner)),
        )
    }
    config = RolloutConfig(max_turns=40, max_new_tokens=6, context_limit=2000, concurrency=2)
    table = SelfPlay(
        lambda: raw_env(players=4, parse_retries=1, max_rounds=2),
        seats,
        config,
        lambda _, infos: {agent: info["role"] for agent, info in infos.items()},
    )
    for game in table.collect(group_tasks(0, 0, 2, 1)):
        assert game.error is None
        assert not game.trainable
        for trajectory in game.trajectories.values():
            assert all(len(turn.text) for turn in trajectory.turns) or not trajectory.turns
            for turn in trajectory.turns:
                segment = trajectory.segments[turn.segment]
                assert inner.renderer.decode_reply(segment.ids[turn.start : turn.stop]) == turn.text
                assert all(map(math.isnan, segment.logps[turn.start : turn.stop]))
    with pytest.raises(ConfigError, match="no weights"):
        SelfPlay(raw_env, {"a": Seat(ReActPolicy(inner), trainable=True)}, config)


def test_names_on_the_command_line():
    for kind, made in (("react", ReActPolicy), ("recon", ReConPolicy), ("sla", SLAPolicy)):
        policy = make_policy(f"{kind}:openai:gpt@http://127.0.0.1:1/v1")
        assert isinstance(policy, made)
        assert policy.name == f"{kind}:openai:gpt@http://127.0.0.1:1/v1"
    with pytest.raises(ConfigError, match="react:hf:FOLDER"):
        make_policy("react:random")
    with pytest.raises(ConfigError, match="at least 2"):
        SLAPolicy(Reader(), 1)
