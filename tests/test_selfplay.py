"""Many seats, many policies: one exact trajectory a seat, the same games whatever the timing, no game half-trained."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import helpers_games
import pytest
import torch
from helpers_envs import Named
from helpers_games import RELEASE, Ring
from helpers_policies import tiny_policy
from helpers_threads import none_left

from agentgym import store
from agentgym.aec import make_classic
from agentgym.errors import ConfigError, EngineError, TooManyFailures
from agentgym.learner.logprobs import token_logprobs
from agentgym.learner.pack import pack, rows_of
from agentgym.policies.hf import HFPolicy
from agentgym.policies.scripted import CannedPolicy, RandomPolicy
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import COUNTS, Game, Seat, SelfPlay, game_metrics
from agentgym.types import Status

SEATS = ("seat_0", "seat_1", "seat_2")


@pytest.fixture(autouse=True)
def clean():
    """No test sees what another left, and none leaves a thread behind."""
    with none_left(helpers_games.forget, RELEASE):
        yield


@pytest.fixture(scope="module")
def tiny():
    return tiny_policy()


@pytest.fixture(scope="module")
def other():
    return tiny_policy(1, "other")


def settings(**changes) -> RolloutConfig:
    usual = {"max_turns": 20, "max_new_tokens": 4, "context_limit": 512, "concurrency": 3, "retries": 1}
    return RolloutConfig(**{**usual, "step_timeout": 20.0, "episode_timeout": 60.0, **changes})


def play(seats, config=None, groups=3, size=1, assign=None, **ring):
    """Play games of `Ring`; returns the games, the statistics, and every game, dropped ones too."""
    every: list[Game] = []
    if isinstance(seats, Seat):
        seats = dict.fromkeys(SEATS, seats)
    table = SelfPlay(lambda: Ring(**ring), seats, config or settings(), assign, on_game=every.append)
    return table.collect(group_tasks(0, 0, groups, size)), table.stats, every


def plain(game):
    """A game without its clock."""
    told = {agent: t.to_dict() for agent, t in game.trajectories.items()}
    for trajectory in told.values():
        trajectory.pop("attempts")
        for turn in trajectory["turns"]:
            del turn["policy_s"], turn["env_s"]
    return told, game.returns, game.status, game.metrics


# ---- trajectories -----------------------------------------------------------------------------------------


def test_every_seat_has_its_exact_tokens(tiny, other, tmp_path):
    seats = {
        "seat_0": Seat(tiny, trainable=True),
        "seat_1": Seat(other, context="window:0"),
        "seat_2": Seat(RandomPolicy(), codec="plain"),
    }
    games, _, _ = play(seats, settings(max_new_tokens=6), rounds=3)
    assert len(games) == 3
    for game in games:
        assert {a: t.info["trainable"] for a, t in game.trajectories.items()} == {
            "seat_0": True,
            "seat_1": False,
            "seat_2": False,
        }
        assert [t.policy for t in game.trajectories.values()] == ["tiny", "other", "random"]
        assert game.trainable == [game.trajectories["seat_0"]]
        assert [len(t.turns) for t in game.trajectories.values()] == [3, 3, 3]
        assert len({t.member for t in game.trajectories.values()}) == 3
        for agent, policy in (("seat_0", tiny), ("seat_1", other)):
            (batch,) = pack(rows_of(game.trajectories[agent], 0), 10**6)
            with torch.inference_mode():
                again = token_logprobs(policy.model, batch).logp
            assert float((again - batch.old_logp).abs().max()) <= 1e-5
            assert len(batch.targets) == game.trajectories[agent].action_tokens
    first, second = (g.trajectories["seat_1"] for g in games[:2])
    assert len(first.segments) == 3
    assert first.segments[0].ids != second.segments[0].ids
    mine = games[0].trajectories["seat_0"]
    assert mine.messages[0]["content"] == "Speak in turn."
    assert f"Before you: {games[0].trajectories['seat_2'].turns[0].action}. Move 3." in mine.turns[1].observation
    everything = [t for game in games for t in game.trajectories.values()]
    store.write(tmp_path / "games.jsonl", everything)
    assert store.read(tmp_path / "games.jsonl") == everything


def test_rewards_are_those_since_the_last_decision():
    canned = {a: Seat(CannedPolicy([text]), codec="plain") for a, text in zip(SEATS, ("aa", "b", "c"), strict=True)}
    (game,), _, _ = play(canned, groups=1, rounds=2)
    assert [t.reward for t in game.trajectories["seat_0"].turns] == [1.0, 1.0]
    assert game.returns == {"seat_0": 2.0, "seat_1": 0.0, "seat_2": 0.0}
    assert game.status is Status.DONE
    won = {a: t.info["role"] == "wolf" for a, t in game.trajectories.items()}
    assert {a: t.success for a, t in game.trajectories.items()} == won
    assert game.metrics == {"moves": 6.0, **dict.fromkeys(COUNTS, 0.0), "turns": 6.0}


def test_a_seat_that_is_out_keeps_its_last_reward():
    (game,), _, _ = play(Seat(RandomPolicy()), groups=1, rounds=1, knockout=True)
    assert [t.reward for t in game.trajectories["seat_0"].turns] == [-2.0]
    assert {t.status for t in game.trajectories.values()} == {Status.DONE}
    assert {a: t.episode_return for a, t in game.trajectories.items()} == game.returns


def test_seats_are_assigned_after_the_deal(tiny, other):
    def assign(task, infos):
        return {agent: info["role"] for agent, info in infos.items()}

    seats = {"wolf": Seat(tiny, trainable=True), "sheep": Seat(other)}
    games, _, _ = play(seats, groups=8, assign=assign, rounds=1)
    wolves = {t.info["agent"] for game in games for t in game.trainable}
    assert len(wolves) > 1
    assert all(t.info["role"] == t.info["seat"] for game in games for t in game.trajectories.values())
    assert {t.policy for game in games for t in game.trainable} == {"tiny"}
    assert {"return/wolf", "return/sheep", "game/turns", "game/moves"} <= set(game_metrics(games))


def test_games_of_a_group_share_the_deal_and_nothing_else(tiny):
    a, b = play(Seat(tiny), groups=1, size=2)[0]
    assert (a.group, a.env_seed) == (b.group, b.env_seed)
    assert (a.id, b.id) == ("00000-000-00", "00000-000-01")
    assert len({t.sampling_seed for g in (a, b) for t in g.trajectories.values()}) == 6
    assert [t.info["role"] for t in a.trajectories.values()] == [t.info["role"] for t in b.trajectories.values()]
    assert a.trajectories["seat_0"].turns[0].text != b.trajectories["seat_0"].turns[0].text


@pytest.mark.parametrize("name", ["tictactoe_v3", "connect_four_v3", "rps_v2"])
def test_games_of_pettingzoo(tiny, name):
    first, second = make_classic(name).possible_agents
    seats = {first: Seat(tiny, trainable=True), second: Seat(RandomPolicy())}
    games = SelfPlay(lambda: make_classic(name), seats, settings(max_turns=70)).collect(group_tasks(0, 0, 2, 1))
    for game in games:
        ended = Status.TRUNCATED if name == "rps_v2" else Status.DONE  # after 15 rounds
        assert (game.env_id, game.status) == (name, ended)
        assert sum(game.returns.values()) == 0
        assert game.metrics["illegal"] == game.metrics["refused"] > 0
        bad = [t for t in game.trajectories[first].turns if t.parse_error]
        assert len(bad) == game.metrics["refused"]
        assert all(turn.action is None for turn in bad)
        assert any(turn.observation.startswith("Invalid answer: no legal move") for turn in bad)


def test_secret_mafia(tiny):
    pytest.importorskip("textarena")
    from agentgym.envs.secret_mafia import make_secret_mafia

    def assign(task, infos):
        return {agent: "mafia" if info["role"] == "Mafia" else "village" for agent, info in infos.items()}

    seats = {"mafia": Seat(tiny, True, context="window:0"), "village": Seat(CannedPolicy(["5, 4, 3, 2, 1 or 0"]))}
    config = settings(max_turns=60, context_limit=2048)
    table = SelfPlay(lambda: make_secret_mafia(discussion_rounds=1), seats, config, assign)
    (game,) = table.collect(group_tasks(0, 0, 1, 1))
    assert sorted(t.info["agent"] for t in game.trainable) == [
        a for a, t in game.trajectories.items() if t.info["role"] == "Mafia"
    ]
    assert set(game.returns.values()) == {1.0, -1.0}


def test_werewolf(tiny, other):
    from agentgym.envs.werewolf import raw_env

    def assign(task, infos):
        return {agent: "wolf" if info["role"] == "Werewolf" else "village" for agent, info in infos.items()}

    seats = {"wolf": Seat(tiny, True, context="window:0"), "village": Seat(other, context="window:0")}
    config = settings(max_turns=100, context_limit=2048, max_new_tokens=3)
    table = SelfPlay(lambda: raw_env(brief=True, parse_retries=1, max_rounds=2), seats, config, assign)
    games = table.collect(group_tasks(0, 0, 3, 1))
    for game in games:
        assert (game.env_id, len(game.trajectories), len(game.trainable)) == ("werewolf_v0", 7, 2)
        assert {t.info["role"] for t in game.trainable} == {"Werewolf"}
        decided = [a for a, t in game.trajectories.items() if t.turns]  # the first victim may be dead before its turn
        assert len(decided) >= 6
        assert game.metrics["turns"] == game.metrics["parse/answers"]
        assert all(game.trajectories[a].episode_return == pytest.approx(game.returns[a]) for a in decided)
        assert all(rows_of(t, 0) for t in game.trainable)


# ---- the same games whatever the timing -------------------------------------------------------------------


class Watched(HFPolicy):
    """Counts rows, and who is live, at every forward."""

    def advance(self):
        rows = sum(s.job is not None for s in self._sessions.values())
        live = sum(s.live for s in self._sessions.values())
        if rows:
            self.seen.append((rows, live))
        return super().advance()


def watched(policy, **changes):
    copy = Watched(policy.model, policy.renderer, policy.name, **changes)
    copy.seen = []
    return copy


def test_the_same_games_whatever_the_timing(tiny, other):
    """Two models, three seats, games that end at different times, and an environment that dawdles."""
    seats = {"seat_0": Seat(tiny, True), "seat_1": Seat(other), "seat_2": Seat(tiny, True, codec="plain")}

    def games(delay):
        found, _, _ = play(seats, settings(max_new_tokens=7), groups=5, rounds=2, delay=delay)
        return [plain(game) for game in found]

    expected = games(0.0)
    assert len(expected) == 5
    for _ in range(3):
        assert games(0.01) == expected


def test_one_session_of_every_game_is_live(tiny):
    policy = watched(tiny)
    games, _, _ = play(Seat(policy, True), groups=9, rounds=3, delay=0.002)
    assert len(games) == 9
    assert all(rows == live for rows, live in policy.seen)
    assert policy.seen[0] == (3, 3)
    assert policy.stats["reused"] > policy.stats["prefilled"]
    assert policy.cache.keys[0].shape[0] <= 16  # 3 games of 3 seats at a time
    assert policy.open_sessions == 0
    assert policy.engine.policies == [policy]
    again = [plain(g) for g in play(Seat(watched(tiny, reuse=False), True), groups=9, rounds=3)[0]]
    assert [t["turns"] for t, *_ in map(plain, games) for t in t.values()] == [
        t["turns"] for t, *_ in again for t in t.values()
    ]


def test_an_engine_that_waits_for_nobody(tiny):
    policy = watched(tiny, deterministic=False)
    games, _, _ = play(Seat(policy), groups=4, delay=0.002)
    assert len(games) == 4
    assert policy.open_sessions == 0


def test_the_decoder_is_full(tiny):
    """Seven seats, eight games: at least 80 % of the games are in the average forward."""
    policy = watched(tiny)
    seats = {f"seat_{i}": Seat(policy, True) for i in range(7)}
    table = SelfPlay(lambda: Ring(7, 2), seats, settings(concurrency=8, max_new_tokens=8))
    assert len(table.collect(group_tasks(0, 0, 8, 1))) == 8
    rows = [r for r, _ in policy.seen]
    assert sum(rows) / len(rows) >= 0.8 * 8


def test_a_policy_that_plays_cannot_join_another_game(tiny):
    session = tiny.open()
    try:
        with pytest.raises(ConfigError, match="play one after the other"):
            play(Seat(tiny), groups=1)
    finally:
        session.close()


# ---- failures ---------------------------------------------------------------------------------------------


def test_a_game_that_broke_is_played_again_with_the_same_seeds(tiny):
    whole = [plain(g) for g in play(Seat(tiny, True), groups=4)[0]]
    games, stats, _ = play(Seat(tiny, True), groups=4, fault="raise", at=4, times=1)
    assert [g.attempts for g in games] == [2, 2, 2, 2]
    assert stats.errors == {"env_error": 4}
    assert stats.retries == 4
    assert [(g[0]["seat_0"]["turns"][0]["text"]) for g in map(plain, games)] == [
        g[0]["seat_0"]["turns"][0]["text"] for g in whole
    ]


@pytest.mark.parametrize(
    ("fault", "at", "status", "message"),
    [
        ("raise", 0, Status.ENV_ERROR, "deal raised RuntimeError: it broke"),
        ("raise", 2, Status.ENV_ERROR, "play raised RuntimeError: it broke"),
        ("exit", 3, Status.ENV_ERROR, "play raised SystemExit: 3"),
        ("nan", 2, Status.ENV_ERROR, "the reward of seat_0 is nan"),
        ("hang", 1, Status.TIMEOUT, "play took longer than 0.1 s"),
    ],
)
def test_a_game_that_always_breaks_is_dropped_whole(fault, at, status, message):
    config = settings(step_timeout=0.1 if fault == "hang" else 20.0)
    games, stats, (game,) = play(Seat(RandomPolicy()), config, groups=1, fault=fault, at=at)
    assert games == []
    assert (game.status, game.error, game.attempts) == (status, message, 2)
    assert all(t.status is status for t in game.trajectories.values())
    assert (stats.groups, stats.dropped_groups, stats.episodes) == (1, 1, 1)
    assert stats.errors == {status.value: 2}


class Dying(Named):
    """A policy that breaks in its second turn of a game."""

    def __init__(self, error=None, sleep=0.0):
        super().__init__()
        self.error, self.sleep = error, sleep

    async def before(self, name, turn):
        if turn == 1:
            await asyncio.sleep(self.sleep)
            if self.error:
                raise self.error


def test_a_seat_whose_policy_dies_takes_its_game_along(tiny):
    seats = {"seat_0": Seat(tiny, True), "seat_1": Seat(Dying(EngineError("out of memory"))), "seat_2": Seat(tiny)}
    games, stats, every = play(seats, groups=2)
    assert games == []
    assert {g.error for g in every} == {"out of memory"}
    assert stats.errors == {"engine_error": 4}
    assert tiny.open_sessions == 0


def test_a_forward_that_fails_is_an_engine_error(tiny):
    policy = watched(tiny)
    forward, calls = policy._forward, []

    def broken(jobs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        forward(jobs)

    policy._forward = broken
    games, stats, _ = play(Seat(policy, True), groups=3)
    assert len(games) == 3
    assert stats.errors == {"engine_error": 3}
    assert [g.attempts for g in games] == [2, 2, 2]


def test_a_game_has_a_deadline():
    _, stats, (game,) = play(Seat(Dying(sleep=30)), settings(episode_timeout=0.2), groups=1)
    assert (game.status, game.error) == (Status.TIMEOUT, "the game took longer than 0.2 s")
    assert stats.errors == {"timeout": 2}


def test_too_many_failures_stop_the_run():
    with pytest.raises(TooManyFailures, match="8 of the last 8 games failed"):
        play(Seat(RandomPolicy()), groups=20, fault="raise")


def test_other_games_go_on_when_one_breaks(tiny):
    seeds = [t.env_seed for t in group_tasks(0, 0, 4, 1)]
    for seed in seeds[1:]:
        helpers_games.BROKEN[seed] = 2
    games, stats, _ = play(Seat(tiny), groups=4, fault="raise", at=2, times=2)
    assert len(games) == 3
    assert stats.dropped_groups == 1


# ---- answers that are none --------------------------------------------------------------------------------


@pytest.mark.parametrize("commands", [True, False])
def test_a_seat_that_never_answers_is_played_for(tiny, commands):
    seats = {"seat_0": Seat(tiny, True, codec="tagged"), "seat_1": Seat(RandomPolicy()), "seat_2": Seat(RandomPolicy())}
    if not commands:
        seats |= {a: Seat(CannedPolicy(["go"])) for a in SEATS[1:]}
    (game,), _, _ = play(seats, settings(parse_limit=2), groups=1, commands=commands)
    mine = game.trajectories["seat_0"]
    assert [t.action for t in mine.turns] == [None] * 4
    assert (game.metrics["parse_errors"], game.metrics["fallbacks"], game.metrics["turns"]) == (4, 2, 8)
    assert mine.turns[1].observation.startswith("Invalid answer: no <action>")
    note = "was played for you" if commands else "nothing was said for you"
    assert note in mine.turns[2].observation
    assert "Move 3." in mine.turns[2].observation
    assert game.status is mine.status is Status.DONE


def test_a_model_that_never_stops_is_cut(tiny):
    endless = HFPolicy(tiny.model, tiny.renderer)
    endless.renderer = tiny_policy().renderer
    endless.renderer.close_id = -1
    (game,), _, _ = play(Seat(endless), settings(max_new_tokens=5), groups=1)
    assert game.metrics["cut"] == game.metrics["turns"] == 6
    assert all(t.stop - t.start == 5 for x in game.trajectories.values() for t in x.turns)


def test_a_full_context_is_played_for_and_the_game_goes_on(tiny):
    seats = {a: Seat(RandomPolicy()) for a in SEATS} | {"seat_1": Seat(tiny, True)}
    (game,), _, _ = play(seats, settings(context_limit=110, max_new_tokens=8), groups=1, rounds=6)
    mine = game.trajectories["seat_1"]
    assert 0 < len(mine.turns) < 6
    assert mine.status is Status.CONTEXT_FULL
    assert game.status is Status.DONE
    assert game.metrics["context_full"] == 1
    assert game.metrics["fallbacks"] == 6 - len(mine.turns)
    assert len(rows_of(mine, 0)) == 1


def test_a_game_that_never_ends_is_truncated(tiny):
    (game,), _, _ = play(Seat(tiny), settings(max_turns=3), groups=1, rounds=50)
    assert game.status is Status.TRUNCATED
    assert [len(t.turns) for t in game.trajectories.values()] == [3, 3, 3]
    assert {t.status for t in game.trajectories.values()} == {Status.TRUNCATED}


# ---- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seats", "config", "message"),
    [
        ({}, {}, "seats is empty"),
        ({"seat_0": Seat(RandomPolicy())}, {}, r"ring_v0: no seat for seat_1 \(seat_1\): there are seat_0"),
        (Seat(RandomPolicy(), trainable=True), {}, "seat_0 is trainable, but the random policy has no weights here"),
        (Seat(RandomPolicy(), codec="plian"), {}, "unknown action codec 'plian'"),
        (Seat(RandomPolicy(), context="windoe"), {}, "unknown context 'windoe'"),
        (Seat(RandomPolicy(), context="workspace"), {}, "seat_0: context workspace"),
        (Seat(RandomPolicy()), {"codec": "plain"}, "set Seat.codec"),
    ],
)
def test_bad_input_is_refused(seats, config, message):
    with pytest.raises(ConfigError, match=message):
        play(seats, settings(**config), groups=1)


def test_a_first_prompt_that_does_not_fit_is_a_mistake(tiny):
    with pytest.raises(ConfigError, match="ring_v0: the first prompt does not fit"):
        play(Seat(tiny), settings(context_limit=20), groups=1)
    assert tiny.open_sessions == 0


def test_what_is_no_game_is_refused():
    table = SelfPlay(lambda: object(), {"a": Seat(RandomPolicy())}, settings())
    with pytest.raises(ConfigError, match="make_env returned object, which is no AEC environment"):
        table.collect(group_tasks(0, 0, 1, 1))


def test_a_game_that_is_not_in_text_is_refused():
    import pettingzoo

    seats = dict.fromkeys(("player_0", "player_1"), Seat(RandomPolicy()))
    table = SelfPlay(lambda: pettingzoo.make("aec", "classic/rps-v2"), seats, settings(retries=0))
    assert table.collect(group_tasks(0, 0, 1, 1)) == []
    assert "agentgym.aec.TextAEC tells a game" in table.stats.messages["env_error"]


# ---- a person ---------------------------------------------------------------------------------------------

SCRIPT = """
from agentgym.aec import make_classic
from agentgym.policies.human import HumanPolicy
from agentgym.policies.scripted import RandomPolicy
from agentgym.rollout import RolloutConfig, Task
from agentgym.selfplay import Seat, SelfPlay

seats = {"player_1": Seat(HumanPolicy(), codec="plain"), "player_2": Seat(RandomPolicy())}
table = SelfPlay(lambda: make_classic("tictactoe_v3"), seats, RolloutConfig(concurrency=1, retries=0))
games = table.collect([Task(7, 7, "g", 0, 0)])
for game in games:
    print([t.action for t in game.trajectories["player_1"].turns], game.returns)
print(table.stats.messages)
"""


def at_terminal(text):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_person_plays():
    shown = at_terminal("5\n\nnonsense\n" + "\n".join("123456789" * 3))
    assert "1 2 3\n4 5 6\n7 8 9\nYou are X." in shown
    assert shown.count("You play tic-tac-toe") == 1
    assert "That cannot be played" in shown
    assert "Invalid answer: no legal move" in shown
    assert shown.splitlines()[-1] == "{}"
    assert "['5', " in shown


def test_a_person_who_leaves_ends_the_game():
    shown = at_terminal("5\n")
    assert "the input has ended: nobody plays this seat any more" in shown.splitlines()[-1]
