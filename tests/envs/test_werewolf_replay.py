"""A recorded game played again: what it tells is what the seats were told, and no damaged record is believed."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from agentgym.envs.werewolf_record import Ballots, Dawn, Out, Own, Speech
from agentgym.envs.werewolf_replay import WINNERS, replay
from agentgym.envs.werewolf_rules import ROLES
from agentgym.envs.werewolf_text import name, parse
from helpers_werewolf import play_werewolf

SETTINGS = [
    {"players": 7},
    {"players": 7, "parity": "gt", "brief": True},
    {"players": 4, "parity": "gt"},
    {"players": 4, "abstain": False, "brief": True},
    {"players": 7, "max_rounds": 1},
]


def as_told(event, n):
    """An event of the replay as the record of a seat has it."""
    number = event["round"]
    none = lambda seat: -1 if seat is None else seat  # noqa: E731
    match event["kind"]:
        case "dawn":
            return Dawn(number, none(event["victim"]))
        case "speech":
            return Speech(number, event["seat"], event["text"])
        case "ballots":
            return Ballots(number, tuple(n if t == "abstain" else none(t) for t in event["targets"]))
        case "out":
            return Out(number, none(event["seat"]), event["tied"])
    return None


@pytest.fixture(scope="module")
def played():
    return [(play_werewolf(seed, **settings), settings) for settings in SETTINGS for seed in range(3)]


def test_it_tells_what_the_seats_were_told(played):
    winners = set()
    for (game, env), settings in played:
        found = replay(list(game.trajectories.values()))
        n = settings["players"]
        assert [p["role"] for p in found["players"]] == [ROLES[role] for role in env.game.roles]
        assert [p["seat"] for p in found["players"]] == [t.info["seat"] for t in game.trajectories.values()]
        assert found["winner"] == WINNERS[env.game.winner]
        winners.add(found["winner"])
        public = [told for event in found["events"] if (told := as_told(event, n))]
        nights = [e for e in found["events"] if e["kind"] == "night"]
        deeds = [(e["round"], a["seat"], a) for e in nights for a in e["acts"]]
        for seat in range(n):
            events = env.view(name(seat)).events
            heard = [e for e in events if isinstance(e, Dawn | Speech | Ballots | Out)]
            assert heard == public[: len(heard)]
            mine = [
                (r, a["verb"], a["target"], a.get("wolf"), a.get("proposal", False)) for r, s, a in deeds if s == seat
            ]
            assert mine == [e for e in events if isinstance(e, Own)]
            if env.game.alive >> seat & 1:
                assert len(heard) == len(public)
        assert [e["kind"] for e in found["events"]].count("end") == 1
        assert found["events"][-1] == {"kind": "end", "round": found["rounds"]}
        json.dumps(found, allow_nan=False)
    assert winners == {"wolves", "village", "nobody"}


def test_a_speech_names_its_turn(played):
    for (game, _), settings in played:
        seats = list(game.trajectories.values())
        speeches = [e for e in replay(seats)["events"] if e["kind"] == "speech"]
        assert speeches
        for event in speeches:
            turn = seats[event["seat"]].turns[event["turn"]]
            assert parse(turn.text, (), settings.get("brief", False)).action == event["text"]
            assert (event["candidates"], event["latent"]) == (None, None)
        places = [(e["seat"], e["turn"]) for e in speeches]
        assert len(set(places)) == len(places)


def test_the_same_words_at_night_are_no_speech(played):
    """What could not be read as a deed is not the turn of a speech that says the same."""
    for (game, _), _ in played:
        seats = copy.deepcopy(list(game.trajectories.values()))
        before = [e for e in replay(seats)["events"] if e["kind"] == "speech"]
        for seat in {e["seat"] for e in before}:
            turns = seats[seat].turns
            first = next(e["turn"] for e in before if e["seat"] == seat)
            turns.insert(0, dataclasses.replace(turns[first], observation="You are asked.\nkill?"))
        after = [e for e in replay(seats)["events"] if e["kind"] == "speech"]
        assert [e["turn"] for e in after] == [e["turn"] + 1 for e in before]


def test_one_seat_remembers_the_whole_game(played):
    (game, _), _ = played[0]
    seats = list(game.trajectories.values())
    whole = replay(seats)
    one = next(t for t in seats if "actions" in t.info)
    alone = replay([one])
    assert [p["role"] for p in alone["players"]] == [p["role"] for p in whole["players"]]
    assert [p["seat"] for p in alone["players"]].count(None) == 6
    forgotten = {"turn": None, "candidates": None}
    assert [e | forgotten for e in alone["events"]] == [e | forgotten for e in whole["events"]]


def test_latent_strategies_are_asked_for(played):
    (game, env), _ = played[0]
    asked = []

    def heard(role, seat, n, text):
        asked.append((role, seat, n, text))
        return seat if seat % 2 else None

    speeches = [e for e in replay(list(game.trajectories.values()), heard)["events"] if e["kind"] == "speech"]
    assert [e["latent"] for e in speeches] == [e["seat"] if e["seat"] % 2 else None for e in speeches]
    assert asked == [(env.game.roles[e["seat"]], e["seat"], 7, e["text"]) for e in speeches]


def test_a_truncated_record_is_refused_wherever_it_is_cut(played):
    cut = 0
    for (game, _), settings in played:
        [end, *_] = seats = [copy.deepcopy(t) for t in game.trajectories.values() if "actions" in t.info]
        actions = end.info["actions"].split()
        assert replay(seats, settings=settings) == replay(seats)
        for length in range(len(actions)):
            for seat in seats:
                seat.info["actions"] = " ".join(actions[:length])
            with pytest.raises(ValueError, match=r"actions cannot be played|speeches are not"):
                replay(seats, settings=settings)
            cut += 1
    assert cut > 200


def test_settings_that_are_known_must_fit(played):
    (game, _), _ = played[0]
    seats = list(game.trajectories.values())
    for wrong in ({"players": 4}, {"players": 5}, {"parity": "odd"}):
        with pytest.raises(ValueError, match="actions cannot be played"):
            replay(seats, settings=wrong)


def spoil(**changes):
    def change(seats):
        for seat in seats:
            seat.info.update(changes)

    return change


def put(seat, key, value):
    def change(seats):
        seats[seat].info[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(actions="17 x"), "invalid literal"),
        (spoil(actions=""), "actions cannot be played"),
        (spoil(actions="-1 3 4"), "actions cannot be played"),
        (spoil(winner="nobody"), "actions cannot be played"),
        (spoil(speeches="[]"), "speeches are not"),
        (spoil(speeches="[[1, 0"), "Expecting"),
        (spoil(speeches="[[1]]"), "not enough values"),
        (put(3, "role", "Mayor"), "player_3 is Mayor"),
        (put(3, "agent", "player_9"), "player_9 is no player"),
        (put(3, "agent", "player_2"), "player_2 is no player of this game, or is there twice"),
        (lambda seats: [t.info.pop("actions", None) for t in seats], "no seat was told"),
    ],
)
def test_a_damaged_record_is_refused(played, change, message):
    (game, _), _ = played[0]
    seats = copy.deepcopy(list(game.trajectories.values()))
    change(seats)
    with pytest.raises(ValueError, match=message):
        replay(seats)
