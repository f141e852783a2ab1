"""Games in text: told right, moves read right, bad answers counted, and PettingZoo's own promises kept."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from pettingzoo.test import api_test, seed_test
from pettingzoo.utils import BaseWrapper

from agentgym.aec import CLASSIC, find_command, make_classic
from agentgym.errors import ConfigError, MissingDependency


def make_mafia(**kwargs):
    pytest.importorskip("textarena")
    from agentgym.envs.secret_mafia import make_secret_mafia

    return make_secret_mafia(**kwargs)


MAKERS = {**{name: lambda name=name: make_classic(name) for name in CLASSIC}, "mafia": make_mafia}


class Typed(str):
    """Text with the ``dtype`` of its space, which `api_test` compares."""

    dtype = None


class TypedText(BaseWrapper):
    """A game whose observations are `Typed`."""

    def observe(self, agent):
        return Typed(super().observe(agent))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_the_promises_of_pettingzoo(name):
    api_test(TypedText(MAKERS[name]()), num_cycles=10)
    seed_test(MAKERS[name], num_cycles=20)


def played(game, moves):
    """Make moves; the game as the last seat saw it."""
    for move in moves:
        game.step(move)
    return game


def finish(game, seed, answer=None):
    """Play to the end with random legal moves; the total rewards and everything that was seen."""
    rng = np.random.default_rng(seed)
    game.reset(seed=seed)
    totals, seen = dict.fromkeys(game.possible_agents, 0.0), []
    while game.agents:
        observation, reward, terminated, truncated, info = game.last()
        totals[game.agent_selection] += reward
        if terminated or truncated:
            game.step(None)
            continue
        seen.append((game.agent_selection, observation))
        commands = info["admissible_commands"]
        game.step(answer or (str(rng.choice(commands)) if commands else "I am no mafia."))
    return totals, seen


def test_tic_tac_toe_is_drawn_as_it_is_numbered():
    game = make_classic("tictactoe_v3")
    game.reset(seed=0)
    played(game, ["1", "4", "I take 2."])
    assert game.observe("player_2") == "X X 3\nO 5 6\n7 8 9\nYou are O."
    assert game.infos["player_2"]["admissible_commands"] == ["3", "5", "6", "7", "8", "9"]
    played(game, ["5", "3"])
    assert game.rewards == {"player_1": 1.0, "player_2": -1.0}
    assert game.observe("player_1").startswith("X X X\nO O 6")
    assert all(game.terminations.values())


def test_a_piece_falls_to_the_bottom():
    game = make_classic("connect_four_v3")
    game.reset(seed=0)
    played(game, ["3", "3", "4"])
    rows = game.observe("player_0").splitlines()
    assert rows[0] == "1 2 3 4 5 6 7"
    assert rows[5:] == [". . O . . . .", ". . X X . . .", "You are X."]
    played(game, ["7", "5", "7", "6"])
    assert game.rewards == {"player_0": 1.0, "player_1": -1.0}


def test_a_full_column_is_no_move():
    game = make_classic("connect_four_v3")
    game.reset(seed=0)
    played(game, ["1"] * 6)
    assert game.infos["player_0"]["admissible_commands"] == ["2", "3", "4", "5", "6", "7"]
    game.step("1")
    assert game.agent_selection == "player_0"
    assert game.infos["player_0"]["invalid"] == "no legal move in the answer; legal are: 2, 3, 4, 5, 6, 7"


def test_rock_paper_scissors_does_not_show_the_move_that_is_still_secret():
    game = make_classic("rps_v2")
    game.reset(seed=0)
    played(game, ["I throw Rock!"])
    assert game.observe("player_1") == "The other player's last move: none yet."
    played(game, ["paper"])
    assert game.rewards == {"player_0": -1.0, "player_1": 1.0}
    assert game.observe("player_0") == "The other player's last move: paper."


def test_a_seat_is_asked_again_and_then_chance_moves():
    def game(seed):
        made = make_classic("tictactoe_v3")
        made.reset(seed=seed)
        for n in range(2):
            made.step("hello")
            assert made.agent_selection == "player_1"
            assert made.infos["player_1"]["invalid"].startswith("no legal move")
            assert made.observe("player_1").startswith("Invalid answer: no legal move in the answer; legal are: 1, 2")
            assert made.metrics() == {"answers": n + 1, "illegal": n + 1, "random_moves": 0}
        made.step("11")
        assert made.agent_selection == "player_2"
        assert made.metrics() == {"answers": 3, "illegal": 3, "random_moves": 1}
        assert "invalid" in made.infos["player_1"]
        assert "Invalid" not in made.observe("player_2")
        return made.observe("player_2")

    assert game(1) == game(1)
    assert len({game(seed) for seed in range(8)}) > 1


def test_a_good_answer_after_a_bad_one_is_good():
    game = make_classic("tictactoe_v3")
    game.reset(seed=0)
    played(game, ["hello", "3"])
    assert "invalid" not in game.infos["player_1"]
    played(game, ["hello", "hello"])
    assert game.metrics() == {"answers": 4, "illegal": 3, "random_moves": 0}
    played(game, ["5"])
    assert game.metrics()["random_moves"] == 0
    game.reset(seed=0)
    assert set(game.metrics().values()) == {0.0}


@pytest.mark.parametrize("name", MAKERS)
def test_a_game_of_nonsense_ends(name):
    game = MAKERS[name]()
    totals, _ = finish(game, 3, "hm")
    assert game.metrics()["random_moves"] > 0
    assert all(abs(total) <= 15 for total in totals.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5", "5"),
        ("not 4 but 5", "5"),
        ("I take cell [5].", "5"),
        ("15", None),
        ("5a", None),
        ("", None),
        ("go North", "north"),
        ("north east", "north east"),
    ],
)
def test_the_last_command_counts(text, found):
    assert find_command(text, {"4": 1, "5": 2, "north": 3, "north east": 4}) == found


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ConfigError, match="unknown game 'tictactoe'"):
        make_classic("tictactoe")
    with pytest.raises(ConfigError, match="limit is 0"):
        make_classic("rps_v2", limit=0)
    with pytest.raises(ConfigError, match="players is 5: Secret Mafia takes 6 to 15"):
        make_mafia(players=5)
    from agentgym.envs.secret_mafia import make_secret_mafia

    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[games\]"):
        make_secret_mafia()


# ---- secret mafia -----------------------------------------------------------------------------------------


def test_secret_mafia_ends_with_the_reward_of_a_team():
    for seed in range(12):
        game = make_mafia(players=6 + seed % 3)
        totals, seen = finish(game, seed)
        assert {abs(total) for total in totals.values()} == {1.0}
        assert 1.0 in totals.values()
        assert game.metrics()["illegal"] == 0
        first = {agent: text for agent, text in reversed(seen)}
        assert all("Welcome to Secret Mafia" in text for text in first.values())


def test_a_seat_hears_what_is_new_and_only_what_is_meant_for_it():
    game = make_mafia()
    game.reset(seed=3)
    roles = {agent: info["role"] for agent, info in game.infos.items()}
    wolf = game.agent_selection
    assert roles[wolf] == "Mafia"
    victim = game.infos[wolf]["admissible_commands"][0]
    assert roles[f"player_{victim}"] != "Mafia"
    game.step(f"[Player {victim}]")
    partner = game.agent_selection
    assert f"[{victim}]" in game.observe(partner)
    game.step(victim)
    assert roles[game.agent_selection] == "Doctor"
    assert "Welcome" in game.observe(game.agent_selection)
    assert f"[Player {partner[-1]}]" not in game.observe(game.agent_selection)
    assert "Welcome" not in game.observe(wolf)


def test_secret_mafia_leaves_the_global_generator_alone():
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    alone = finish(make_mafia(), 4)
    one, two = make_mafia(), make_mafia()
    two.reset(seed=9)
    one.reset(seed=4)
    rng, seen = np.random.default_rng(4), []
    while not any(one.terminations.values()):
        two.step("1")  # draws in between
        seen.append((one.agent_selection, one.observe(one.agent_selection)))
        commands = one.infos[one.agent_selection]["admissible_commands"]
        one.step(str(rng.choice(commands)) if commands else "I am no mafia.")
        if any(two.terminations.values()):
            two.reset(seed=1)
    assert seen == alone[1]
    assert [random.random() for _ in range(3)] == expected
