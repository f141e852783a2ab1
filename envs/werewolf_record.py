"""Werewolf: what one seat has been told and has done, as data; texts and scripted players are made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from agentgym.envs.werewolf_game import NIGHT, TALK, VOTE, State
from agentgym.envs.werewolf_rules import DOCTOR, SEER, WOLF

VERBS = {WOLF: "kill", SEER: "see", DOCTOR: "save"}
"""What a role does at night."""

Speeches = Mapping[tuple[int, int], str]
"""(round, seat) -> what was said."""


class Own(NamedTuple):
    """What the seat itself did at night; ``wolf`` is what the Seer learned. A ``proposal`` does not bind."""

    round: int
    verb: str
    target: int
    wolf: bool | None = None
    proposal: bool = False


class Proposal(NamedTuple):
    """Whom the other wolf wants to kill."""

    round: int
    seat: int
    target: int


class Dawn(NamedTuple):
    """Who was killed in the night; -1 if nobody."""

    round: int
    victim: int


class Speech(NamedTuple):
    """What a seat said to all."""

    round: int
    seat: int
    text: str


class Ballots(NamedTuple):
    """The target of each seat; the number of players if it abstained, -1 if it is dead."""

    round: int
    targets: tuple[int, ...]


class Out(NamedTuple):
    """Who was eliminated, -1 if nobody, and whether the lot decided."""

    round: int
    seat: int
    tied: bool


Event = Own | Proposal | Dawn | Speech | Ballots | Out


@dataclass(frozen=True)
class View:
    """All that a seat knows, and what it may do now.

    Attributes:
        seat, role: Its own.
        mates: The other wolves, for a wolf.
        n: Players.
        round, phase: Where the game is.
        alive: Living seats, ascending.
        events: In the order of the game; they end with the death of the seat.
        commands: The legal actions as text; empty for a speech and while another seat is to move.
    """

    seat: int
    role: int
    mates: tuple[int, ...]
    n: int
    round: int
    phase: int
    alive: tuple[int, ...]
    events: tuple[Event, ...]
    commands: tuple[str, ...]


def view(state: State, seat: int, speeches: Speeches) -> View:
    """What a seat knows."""
    role, rules = state.roles[seat], state.rules
    mates = tuple(s for s in rules.seats[state.wolves] if s != seat) if role == WOLF else ()
    told = tuple(events(state, seat, speeches))
    told_commands = tuple(commands(state)) if state.player() == seat else ()
    return View(seat, role, mates, rules.n, state.round, state.phase, rules.seats[state.alive], told, told_commands)


def commands(state: State) -> list[str]:
    """The legal actions of the seat to move as text, in the order of `State.legal`; none for a speech."""
    if state.phase == TALK or state.player() < 0:
        return []
    verb = "vote" if state.phase == VOTE else VERBS[state.roles[state.player()]]
    return ["abstain" if target == state.rules.n else f"{verb} player_{target}" for target in state.legal()]


def events(state: State, seat: int, speeches: Speeches) -> Iterator[Event]:
    """The record of a seat: what it did and what it was told, until it died."""
    for number in range(state.round):
        yield from _night(state, seat, number)
        if number == len(state.nights):
            return
        victim = state.nights[number][1]
        yield Dawn(number + 1, victim)
        if victim == seat:
            return
        yield from _talk(state, number, speeches)
        if number == len(state.votes):
            return
        ballots, out = state.votes[number]
        yield Ballots(number + 1, ballots)
        most = ballots.count(out)
        yield Out(number + 1, out, out >= 0 and sum(ballots.count(s) == most for s in range(state.rules.n)) > 1)
        if out == seat:
            return


def _night(state: State, seat: int, number: int) -> Iterator[Event]:
    role = state.roles[seat]
    if role not in VERBS:
        return
    over = number < len(state.nights)
    if not over and state.phase != NIGHT:
        return
    target = state.nights[number][0][seat] if over else state.own(seat)
    first = False
    if role == WOLF:
        heard = state.proposed(seat, number) if over else state.proposal(seat)
        wolves = state.rules.seats[state.wolves]
        acting = (
            [w for w in wolves if state.nights[number][0][w] >= 0] if over else [w for w in wolves if w in state.queue]
        )
        first = len(acting) == 2 and acting[0] == seat
        if heard >= 0:
            yield Proposal(number + 1, acting[0], heard)
    if target >= 0:
        wolf = bool(state.wolves >> target & 1) if role == SEER else None
        yield Own(number + 1, VERBS[role], target, wolf, first)


def _talk(state: State, number: int, speeches: Speeches) -> Iterator[Event]:
    if number < len(state.talks):
        latents, codes, _ = state.talks[number]
        said = [(seat, codes[seat]) for seat, latent in enumerate(latents) if latent >= 0]
    elif state.phase == TALK:
        said = list(zip(state.queue, state.codes, strict=False))
    else:
        return
    for seat, code in said:
        text = speeches.get((number + 1, seat))
        if text is None and code >= 0:
            text = f"code {code}"
        if text is not None:
            yield Speech(number + 1, seat, text)
