"""A finished game of Werewolf as plain data: who was who, and all that happened, in order.

A trajectory of self-play remembers the game as numbers (``info["actions"]``); they are played again and refused if they
do not lead, legally, to the end that is told beside them. One seat is enough. Settings of the game that are not
known are those that fit; a record that was cut before its last night may then fit other ones.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentgym.envs.werewolf_game import NIGHT, RUNNING, State
from agentgym.envs.werewolf_record import VERBS
from agentgym.envs.werewolf_rules import CASTS, PARITIES, ROLES, SEER, WOLF, Rules
from agentgym.envs.werewolf_text import clean, name, parse

from agentgym.types import Trajectory

WINNERS = ("wolves", "village", "nobody")
_ENDLESS = 10_000
_LONG = 100_000
_ASKED = ("It is your turn to speak.", "say?")

Heard = Callable[[int, int, int, str], int | None]
"""Role, seat, number of seats and text of a speech -> its latent strategy, None if that is not known."""


def replay(
    seats: Sequence[Trajectory], heard: Heard | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Play a recorded game again.

    Args:
        seats: Trajectories of the game, at least one that was told how it ended; some may be missing.
        heard: Tells the latent strategy of a speech.
        settings: Arguments of `agentgym.envs.werewolf.raw_env`, if they are known.

    Returns:
        ``players``: ``agent``, ``role`` and ``seat`` (who played it, None if not known) of each; ``winner``;
        ``rounds``; ``events``, each with ``kind`` and ``round``:

        | kind | |
        |---|---|
        | ``night`` | ``acts``: ``seat``, ``verb``, ``target``; of the Seer ``wolf``; ``proposal`` if it does not bind |
        | ``dawn`` | ``victim``, None if nobody was killed |
        | ``speech`` | ``seat``, ``text``; ``turn`` of its trajectory, number of ``candidates``, ``latent``, or None |
        | ``ballots`` | ``targets`` by seat: a seat, ``abstain``, or None of the dead |
        | ``out`` | ``seat``, None if nobody; ``tied`` if the lot decided |
        | ``end`` | |

    Raises:
        ValueError: What is remembered is damaged, or does not fit.
    """
    end = next((t.info for t in seats if "actions" in t.info), None)
    if end is None:
        raise ValueError("no seat was told how it ended")
    winner, actions = str(end["winner"]), [int(a) for a in str(end["actions"]).split()]
    state = _played(actions, winner, settings)
    n = state.rules.n
    by_seat = _by_seat(seats, state)
    said = {(int(number), int(seat)): str(text) for number, seat, text in json.loads(str(end["speeches"]))}
    spoken = {(r, s) for r, (who, *_) in enumerate(state.talks, 1) for s in range(n) if who[s] >= 0}
    if said.keys() != spoken:
        raise ValueError("speeches are not of those who spoke")
    players = [
        {"agent": name(s), "role": ROLES[role], "seat": str(by_seat[s].info["seat"]) if s in by_seat else None}
        for s, role in enumerate(state.roles)
    ]
    turns = {seat: _Turns(trajectory) for seat, trajectory in by_seat.items()}

    def speech(number: int, seat: int) -> dict[str, Any]:
        text = said[number, seat]
        turn, candidates = turns[seat].of(text) if seat in turns else (None, None)
        latent = heard(state.roles[seat], seat, n, text) if heard else None
        told = {"text": text, "turn": turn, "candidates": candidates, "latent": latent}
        return {"kind": "speech", "round": number, "seat": seat, **told}

    events = list(_events(state, speech))
    return {"players": players, "winner": winner, "rounds": len(state.nights), "events": events}


@functools.cache
def _rules(players: int, parity: str) -> Rules:
    return Rules(players, parity, "win", (1,) * len(ROLES), max_rounds=_ENDLESS)


def _played(actions: Sequence[int], winner: str, settings: Mapping[str, Any] | None) -> State:
    """The end of the game under the settings with which the actions are legal and end just there."""
    known = None if settings is None else (settings.get("players", 7), settings.get("parity", "geq"))
    for players, parity in itertools.product(CASTS, PARITIES):
        if known not in (None, (players, parity)):
            continue
        state = State(_rules(players, parity))
        for action in actions:
            if action not in state.legal():
                break
            state.play(action)
        else:
            dusk = state.winner == RUNNING and state.phase == NIGHT and not state.buffer and state.round > 1
            if (winner == WINNERS[-1] and dusk) or (state.winner != RUNNING and winner == WINNERS[state.winner]):
                return state
    raise ValueError(f"actions cannot be played to the end that is told ({winner})")


def _by_seat(seats: Sequence[Trajectory], state: State) -> dict[int, Trajectory]:
    numbers = {name(seat): seat for seat in range(state.rules.n)}
    found = {}
    for trajectory in seats:
        agent = str(trajectory.info.get("agent"))
        seat = numbers.get(agent)
        if seat is None or seat in found:
            raise ValueError(f"{agent} is no player of this game, or is there twice")
        role = ROLES[state.roles[seat]]
        if trajectory.info.get("role", role) != role:
            raise ValueError(f"{agent} is {trajectory.info['role']}, by the deal {role}")
        found[seat] = trajectory
    return found


class _Turns:
    """Finds the turns in which a seat spoke, among those that asked it to (`agentgym.envs.werewolf_text.ask`)."""

    def __init__(self, trajectory: Trajectory):
        asked = ((number, turn) for number, turn in enumerate(trajectory.turns) if turn.parse_error is None)
        self.left = [(n, turn) for n, turn in asked if turn.observation.rpartition("\n")[2].startswith(_ASKED)]

    def of(self, said: str) -> tuple[int | None, int | None]:
        """The next turn whose statement this is, and how many candidates it had."""
        for at, (number, turn) in enumerate(self.left if said else []):
            read = (parse(turn.text, (), brief).action for brief in (False, True))
            if any(text and clean(text, _LONG).startswith(said) for text in read):
                del self.left[: at + 1]
                return number, len(turn.candidates) or None
        return None, None


def _events(state: State, speech: Callable[[int, int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    n = state.rules.n
    for number, (acts, victim) in enumerate(state.nights, start=1):
        yield {"kind": "night", "round": number, "acts": _acts(state, acts)}
        yield {"kind": "dawn", "round": number, "victim": _seat(victim)}
        if number > len(state.talks):
            break
        for seat, spoke in enumerate(state.talks[number - 1][0]):
            if spoke >= 0:
                yield speech(number, seat)
        ballots, out = state.votes[number - 1]
        targets = ["abstain" if target == n else _seat(target) for target in ballots]
        yield {"kind": "ballots", "round": number, "targets": targets}
        most = ballots.count(out)
        tied = out >= 0 and sum(ballots.count(seat) == most for seat in range(n)) > 1
        yield {"kind": "out", "round": number, "seat": _seat(out), "tied": tied}
    yield {"kind": "end", "round": len(state.nights)}


def _acts(state: State, acts: Sequence[int]) -> list[dict[str, Any]]:
    """What was done in a night, in the order in which it was decided."""
    acting = sorted((state.roles[seat], seat) for seat, target in enumerate(acts) if target >= 0)
    wolves = [seat for role, seat in acting if role == WOLF]
    found = []
    for role, seat in acting:
        act: dict[str, Any] = {"seat": seat, "verb": VERBS[role], "target": acts[seat]}
        if role == SEER:
            act["wolf"] = state.roles[acts[seat]] == WOLF
        if seat in wolves[:-1]:
            act["proposal"] = True
        found.append(act)
    return found


def _seat(seat: int) -> int | None:
    return seat if seat >= 0 else None
