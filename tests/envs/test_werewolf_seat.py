import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs.werewolf_seat import WerewolfSeatEnv
from gymnasium.error import ResetNeeded

import agentgym  # noqa: F401
from agentgym.checks import check_agent_env
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig

ID = "agentgym/WerewolfSeat-v0"


def follow(env, seed, **options):
    """An episode of the expert: rewards and the last info."""
    text, info = env.reset(seed=seed, options={"expert": True, **options})
    rewards, over = [], False
    while not over:
        text, reward, terminated, truncated, info = env.step(info["expert_action"])
        rewards.append(reward)
        over = terminated or truncated
    return text, rewards, info


def test_promises_where_games_can_be_lost():
    """All but that the expert always wins, which `test_every_env` checks where only such games are dealt."""
    report = check_agent_env(ID, {}, skip=["expert", "growth"])
    assert report.passed, str(report)


def test_episode():
    env = gym.make(ID, seat=3, role="Doctor")
    text, info = env.reset(seed=0)
    assert text.startswith("You are player_3. Your role: Doctor.")
    assert (info["seat"], info["role"], info["phase"]) == ("player_3", "Doctor", "night")
    assert info["admissible_commands"][3] == "save player_3"
    assert "expert_action" not in info
    text, rewards, info = follow(env, 0)
    assert text.endswith(f"The game is over. Winner: {info['winner']}.")
    assert info["admissible_commands"] == []
    assert info["score"] == (info["winner"] == "village")
    assert info["success"] == (info["winner"] == "village")
    assert sum(rewards) == pytest.approx(300 if info["success"] else -300, abs=140)
    assert info["metrics"]["parse/failures"] == 0
    env.close()
    env.close()


@pytest.mark.parametrize("role", ["Werewolf", "Seer", "Villager"])
def test_role_and_seat_by_option(role):
    env = WerewolfSeatEnv(players=4, brief=True)
    seats = set()
    for seed in range(12):
        text, info = env.reset(seed=seed, options={"role": role})
        assert info["role"] == role
        assert text.startswith(f"{info['seat']} {role.lower()}\n")
        seats.add(info["seat"])
    assert len(seats) > 2
    assert env.reset(seed=0, options={"seat": 2})[1]["seat"] == "player_2"


@pytest.mark.parametrize("opponents", ["random", "scripted", "cautious", "quiet", "naive"])
def test_the_expert_wins_some_games(opponents):
    env = WerewolfSeatEnv(opponents=opponents, rewards="win", brief=True)
    won = []
    for seed in range(24):
        _, rewards, info = follow(env, seed)
        won.append(info["success"])
        assert (info["score"], sum(rewards)) == ((1.0, 1.0) if won[-1] else (0.0, -1.0))
    assert {True, False} == set(won)


def test_what_is_left_to_chance_is_no_success():
    env = WerewolfSeatEnv(players=4, parse_retries=0, opponents="random", role="Werewolf")
    won = 0
    for seed in range(10):
        _, info = env.reset(seed=seed)
        steps, over = 0, False
        while not over:
            _, _, terminated, truncated, info = env.step("nonsense")
            steps, over = steps + 1, terminated or truncated
        assert info["fallbacks"] == steps
        assert not info["success"]
        won += info["score"]
    assert won


def test_same_seed_same_opponents():
    """The others draw from generators of their own: the same where this seat has done the same so far."""
    env, other = WerewolfSeatEnv(opponents="random"), WerewolfSeatEnv(opponents="random")
    text, info = env.reset(seed=5)
    assert other.reset(seed=5)[0] == text
    assert env.reset(seed=5, options={"split": "test"})[0] != text
    env.reset(seed=5)
    said = info["admissible_commands"] or ["", '{"statement": "x"}']
    assert env.step(said[0])[0] != other.step(said[-1])[0]


def test_a_function_plays_the_others():
    asked = []

    def play(observation, info):
        asked.append((observation, info["role"]))
        commands = info["admissible_commands"]
        return commands[-1] if commands else '{"statement": "I vote with you."}'

    env = WerewolfSeatEnv(opponents=play, seat=0)
    _, _, info = follow(env, 1)
    assert len(asked) > 8
    assert all(text.startswith("You are player_") and "You are player_0." not in text for text, _ in asked)
    assert "metrics" in info


def test_evaluation():
    with EnvPool(ID, {"players": 4, "brief": True}) as pool:
        config = RolloutConfig(max_turns=60, context_limit=10**6, codec="verbatim", concurrency=2)
        found, _ = evaluate(pool, ExpertPolicy(), config, episodes=20, seed=0, options={"expert": True})
    assert 0 < found.success.mean < 1


def test_misuse():
    env = WerewolfSeatEnv()
    with pytest.raises(ResetNeeded):
        env.step("abstain")
    for kwargs, word in (
        ({"seat": 7}, "seat"),
        ({"seat": True}, "seat"),
        ({"role": "Hunter"}, "role"),
        ({"players": 4, "role": "Doctor"}, "role"),
        ({"opponents": "gpt"}, "opponents"),
        ({"latents": (1, 1, 1, 1)}, "latents"),
        ({"render_mode": "human"}, "render_mode"),
        ({"parity": "le"}, "parity"),
    ):
        with pytest.raises(ConfigError, match=word):
            WerewolfSeatEnv(**kwargs)
    for options in ({"seat": 9}, {"role": "Hunter"}, {"split": "all"}, {"sead": 1}):
        with pytest.raises(ConfigError):
            env.reset(seed=0, options=options)


def test_games_differ_by_seed():
    env = WerewolfSeatEnv()
    firsts = [env.reset(seed=seed)[0] for seed in range(20)]
    assert len(set(firsts)) > 10
    assert np.unique([env.reset(seed=seed)[1]["role"] for seed in range(40)]).size == 4
