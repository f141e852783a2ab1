"""Werewolf as a state machine over numbers, made to be copied and searched: no text, no generator of its own.

Actions: ``0 .. n-1`` a seat, ``n`` abstain, ``n+1 + j`` latent strategy j of the own role (a speech). One that accuses
or clears somebody is followed by a decision of the same seat about whom: a living seat, of which the Seer names only
what it saw to be so, or ``n`` for nobody. Decisions come one after another; those of a night and the ballots of a vote
lie in a buffer and take effect when the last one is in.
Chance (the deal, the tie of a vote, the public code of a speech) is a state of its own, whose outcomes are its actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from agentgym.envs.werewolf_rules import DOCTOR, SEER, WOLF, Rules
from numpy.typing import NDArray

NIGHT, TALK, VOTE = range(3)
PHASES = ("night", "discussion", "vote")
CHANCE, TERMINAL = -1, -2
"""What `State.player` is where no seat is to move."""
RUNNING, WOLVES, VILLAGE, TRUNCATED = range(-1, 3)
"""What `State.winner` may be."""
SHOWN = 3
"""Rounds that a vector holds: the first three, later the last three."""

Roles = tuple[int, ...]


class State:
    """A position of the game. Everything in it is a number or a tuple, so a copy shares all of it.

    Attributes:
        rules: What is played.
        roles: Role of each seat; empty before the deal.
        wolves, alive: Seats as bits.
        round: From 1.
        phase: `NIGHT`, `TALK` or `VOTE`.
        queue: Who decides in this phase, in order; ``queue[len(buffer)]`` is to move.
        buffer: What they have decided.
        nights: By round: the target of each seat (-1 if none) and who was killed (-1 if nobody).
        talks: By round: the latent strategy of each seat (-1 if none), the code that was heard (-1 if none), and the
            argument (-1 if the seat was silent, 0 none, 1 + s accuses seat s, n + 1 + s clears it).
        codes, arguments: Those heard so far in the running discussion.
        naming: Whether the last speaker is still to say whom its speech is about.
        votes: By round: the ballot of each seat (``n`` abstains, -1 if none) and who was eliminated (-1 if nobody).
        tied: Seats between which chance decides, or empty.
        saying: Whether chance decides on the code of the last speech.
        totals: Rewards so far, by seat.
        winner: `RUNNING`, `WOLVES`, `VILLAGE` or `TRUNCATED`.
    """

    __slots__ = (
        *("alive", "arguments", "buffer", "codes", "naming", "nights", "phase", "queue", "roles", "round", "rules"),
        *("saying", "talks", "tied", "totals", "votes", "winner", "wolves"),
    )

    rules: Rules
    roles: Roles
    wolves: int
    alive: int
    round: int
    phase: int
    queue: tuple[int, ...]
    buffer: tuple[int, ...]
    codes: tuple[int, ...]
    arguments: tuple[int, ...]
    naming: bool
    nights: tuple[tuple[tuple[int, ...], int], ...]
    talks: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    votes: tuple[tuple[tuple[int, ...], int], ...]
    tied: tuple[int, ...]
    saying: bool
    totals: tuple[float, ...]
    winner: int

    def __init__(self, rules: Rules):
        """Make the state before the deal."""
        self.rules, self.roles, self.wolves, self.alive = rules, (), 0, (1 << rules.n) - 1
        self.round, self.phase, self.queue, self.buffer, self.codes = 1, NIGHT, (), (), ()
        self.nights, self.talks, self.votes, self.arguments, self.naming = (), (), (), (), False
        self.tied, self.saying, self.totals, self.winner = (), False, (0.0,) * rules.n, RUNNING

    # ---- the protocol of games -----------------------------------------------------------------------

    def player(self) -> int:
        """The seat to move, `CHANCE` or `TERMINAL`."""
        if self.winner != RUNNING:
            return TERMINAL
        if not self.roles or self.tied or self.saying:
            return CHANCE
        return self.queue[len(self.buffer) - self.naming]

    def legal(self) -> list[int]:
        """The legal actions, ascending; at a chance state its outcomes (deal: index into `Rules.deals`)."""
        rules = self.rules
        if self.winner != RUNNING:
            return []
        if not self.roles:
            return list(range(len(rules.deals)))
        if self.tied:
            return list(self.tied)
        if self.saying:
            return [code for code, p in enumerate(self._said()) if p > 0]
        seat, alive = self.player(), self.alive
        if self.phase == NIGHT:
            role = self.roles[seat]
            if role == WOLF:
                return list(rules.seats[alive & ~self.wolves])
            return list(rules.seats[alive if role == DOCTOR else alive & ~(1 << seat)])
        if self.phase == TALK and not self.naming:
            return list(rules.speeches[self.roles[seat]])
        targets = list(rules.seats[alive & ~(1 << seat)])
        if self.naming and self.roles[seat] == SEER:
            checked, wolf = {acts[seat] for acts, _ in self.nights}, self._stance() > 0
            targets = [target for target in targets if target in checked and self.wolves >> target & 1 == wolf]
        return [*targets, rules.n] if rules.abstain or self.naming else targets

    def chance(self) -> list[tuple[int, float]]:
        """Outcomes and their probabilities at a chance state."""
        outcomes = self.legal()
        if self.saying:
            said = self._said()
            return [(code, said[code]) for code in outcomes]
        return [(outcome, 1 / len(outcomes)) for outcome in outcomes]

    def sample_chance(self, rng: np.random.Generator) -> int:
        """Draw an outcome at a chance state."""
        if self.saying:
            said = np.cumsum(self._said())
            return min(int(np.searchsorted(said, rng.random() * said[-1], side="right")), len(said) - 1)
        if self.tied:
            return self.tied[int(rng.integers(len(self.tied)))]
        return int(rng.integers(len(self.rules.deals)))

    def child(self, action: int) -> State:
        """The state after an action, which must be legal (that is not checked)."""
        new = self.copy()
        new.play(action)
        return new

    def returns(self) -> list[float]:
        """Rewards of every seat so far; at the end, of the game."""
        return list(self.totals)

    # ---- moves ---------------------------------------------------------------------------------------

    def copy(self) -> State:
        """A copy, whose moves do not touch this one."""
        new = State.__new__(State)
        new.rules, new.roles, new.wolves, new.alive = self.rules, self.roles, self.wolves, self.alive
        new.round, new.phase, new.queue, new.buffer = self.round, self.phase, self.queue, self.buffer
        new.codes, new.nights, new.talks, new.votes = self.codes, self.nights, self.talks, self.votes
        new.arguments, new.naming = self.arguments, self.naming
        new.tied, new.saying, new.totals, new.winner = self.tied, self.saying, self.totals, self.winner
        return new

    def play(self, action: int) -> None:
        """Move in place; `child` without the copy."""
        if self.tied:
            self.tied = ()
            self._eliminate(action)
        elif self.saying:
            self.saying = False
            self._heard(action)
        elif self.naming:
            self.naming = False
            seat = action if self._stance() > 0 else self.rules.n + action
            self._say(1 + seat if action < self.rules.n else 0)
        elif not self.roles:
            self.roles, self.wolves = self.rules.deals[action]
            self._begin(NIGHT)
        else:
            self.buffer = (*self.buffer, action)
            if self.phase == TALK:
                self.naming = self._stance() != 0
                if not self.naming:
                    self._say(0)
            elif len(self.buffer) == len(self.queue):
                self._dawn() if self.phase == NIGHT else self._count()

    def _begin(self, phase: int) -> None:
        self.phase, self.buffer, self.codes, self.arguments = phase, (), (), ()
        living = self.rules.seats[self.alive]
        if phase == NIGHT:
            role = {self.roles[seat]: seat for seat in living}
            wolves = self.rules.seats[self.alive & self.wolves]
            living = (*wolves, *(role[kind] for kind in (SEER, DOCTOR) if kind in role))
        self.queue = living

    def _last(self) -> tuple[int, int]:
        """Role and latent strategy of the last speech."""
        return self.roles[self.queue[len(self.buffer) - 1]], self.buffer[-1] - self.rules.n - 1

    def _stance(self) -> int:
        role, latent = self._last()
        return self.rules.stances[role][latent]

    def _said(self) -> tuple[float, ...]:
        """Distribution of the code of the last speech."""
        assert self.rules.codebook is not None
        role, latent = self._last()
        return self.rules.codebook[role][latent]

    def _say(self, argument: int) -> None:
        self.arguments = (*self.arguments, argument)
        self.saying = self.rules.codes > 0
        if not self.saying:
            self._heard(-1)

    def _heard(self, code: int) -> None:
        self.codes = (*self.codes, code)
        if len(self.buffer) == len(self.queue):
            latents = tuple(action - self.rules.n - 1 for action in self.buffer)
            self.talks = (*self.talks, (self._spread(latents), self._spread(self.codes), self._spread(self.arguments)))
            self._begin(VOTE)

    def _spread(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Values of the queue as values by seat, -1 for who was not in it."""
        by_seat = [-1] * self.rules.n
        for seat, value in zip(self.queue, values, strict=False):
            by_seat[seat] = value
        return tuple(by_seat)

    def _dawn(self) -> None:
        kill = save = check = doctor = -1
        for seat, target in zip(self.queue, self.buffer, strict=True):
            role = self.roles[seat]
            if role == WOLF:
                kill = target  # the wolf with the higher number comes last and decides
            elif role == SEER:
                check = target
            else:
                save, doctor = target, seat
        totals = list(self.totals)
        self.rules.table.night(self, totals, kill, save, check, doctor)
        self.totals = tuple(totals)
        victim = -1 if kill == save else kill
        self.nights = (*self.nights, (self._spread(self.buffer), victim))
        if victim >= 0:
            self.alive &= ~(1 << victim)
        if not self._over():
            self._begin(TALK)

    def _count(self) -> None:
        votes = [self.buffer.count(seat) for seat in range(self.rules.n)]
        most = max(votes)
        tied = tuple(seat for seat, count in enumerate(votes) if count == most) if most else (-1,)
        if len(tied) > 1:
            self.tied = tied
        else:
            self._eliminate(tied[0])

    def _eliminate(self, out: int) -> None:
        ballots, totals = self._spread(self.buffer), list(self.totals)
        self.rules.table.vote(self, totals, ballots, out)
        self.totals = tuple(totals)
        self.votes = (*self.votes, (ballots, out))
        if out >= 0:
            self.alive &= ~(1 << out)
        if self._over():
            return
        if self.round == self.rules.max_rounds:
            self._end(TRUNCATED)
            return
        self.round += 1
        self._begin(NIGHT)

    def _over(self) -> bool:
        wolves = (self.alive & self.wolves).bit_count()
        others = self.alive.bit_count() - wolves
        if not wolves:
            self._end(VILLAGE)
        elif wolves > others or (wolves == others and self.rules.parity == "geq"):
            self._end(WOLVES)
        return self.winner != RUNNING

    def _end(self, winner: int) -> None:
        self.winner, self.queue, self.buffer, self.codes, self.arguments = winner, (), (), (), ()
        if winner != TRUNCATED:
            win = self.rules.table.win
            won = self.wolves if winner == WOLVES else ~self.wolves
            self.totals = tuple(t + (win if won >> seat & 1 else -win) for seat, t in enumerate(self.totals))

    # ---- what a seat knows ---------------------------------------------------------------------------

    def proposal(self, seat: int) -> int:
        """The target that the other wolf has named tonight, if this seat is to hear it; else -1."""
        decided = len(self.buffer)
        if self.phase != NIGHT or decided < 1 or self.queue[1] != seat or self.roles[seat] != WOLF:
            return -1
        return self.buffer[0]

    def proposed(self, seat: int, number: int) -> int:
        """The target that the other wolf named to this seat in an earlier night, counted from 0; else -1."""
        acts = self.nights[number][0]
        wolves = [s for s in self.rules.seats[self.wolves] if acts[s] >= 0]
        return acts[wolves[0]] if len(wolves) == 2 and wolves[1] == seat else -1

    def own(self, seat: int) -> int:
        """What this seat has decided in the running phase, else -1."""
        return self.buffer[self.queue.index(seat)] if seat in self.queue[: len(self.buffer)] else -1

    def infoset(self, seat: int) -> tuple[Any, ...]:
        """All that a seat knows, to the last detail, as a key: perfect recall."""
        if not self.roles:
            return (seat,)
        role = self.roles[seat]
        wolf = role == WOLF
        nights = tuple(
            (acts[seat], role == SEER and acts[seat] >= 0 and self.wolves >> acts[seat] & 1)
            + ((self.proposed(seat, number),) if wolf else ())
            + (victim,)
            for number, (acts, victim) in enumerate(self.nights)
        )
        talks = tuple((latents[seat], codes, arguments) for latents, codes, arguments in self.talks)
        heard = (self.codes, self.arguments[: len(self.codes)])
        now = (self.round, self.phase, self.alive, self.own(seat), *heard, self.proposal(seat) if wolf else -1)
        return (seat, role, self.wolves if wolf else 0, *now, nights, talks, self.votes)

    def tensor(self, seat: int) -> NDArray[np.float32]:
        """What a seat knows as numbers in [-1, 1], ``[width]``: LSPO, table 6 (211 for 7 players), and codes heard.

        Blocks: own seat; role; round / `Rules.max_rounds`; phase; alive; then for each of `SHOWN` rounds the own secret
        action, who was killed, all ballots (row: voter); then for each of these rounds the code heard from each seat
        (one-hot, only with a codebook); and where speeches have arguments, for each of these rounds and each seat whom
        it accused (1) or cleared (-1), and the own latent strategy while its argument is to be named. What the table
        has no room for is a sign: the other wolf is -1 beside the own seat, a target that the Seer found to be no
        Werewolf is -1, and so is what the other wolf proposed.
        """
        rules, n = self.rules, self.rules.n
        x = np.zeros(rules.width, np.float32)
        if not self.roles:
            return x
        role = self.roles[seat]
        if role == WOLF:
            for mate in rules.seats[self.wolves]:
                x[mate] = -1.0
        x[seat] = x[n + role] = 1.0
        x[n + 4] = self.round / rules.max_rounds
        x[n + 5 + self.phase] = 1.0
        x[[n + 8 + s for s in rules.seats[self.alive]]] = 1.0
        first = max(0, self.round - SHOWN)
        start, size = 2 * n + 8, 2 * n + n * n
        for number in range(first, self.round):
            at = start + (number - first) * size
            if number < len(self.nights):
                acts, victim = self.nights[number]
                own, heard = acts[seat], self.proposed(seat, number) if role == WOLF else -1
                if victim >= 0:
                    x[at + n + victim] = 1.0
            else:
                own, heard = (self.own(seat), self.proposal(seat)) if self.phase == NIGHT else (-1, -1)
            if heard >= 0:
                x[at + heard] = -1.0
            if own >= 0:
                x[at + own] = -1.0 if role == SEER and not self.wolves >> own & 1 else 1.0
            if number < len(self.votes):
                for voter, ballot in enumerate(self.votes[number][0]):
                    if 0 <= ballot < n:
                        x[at + 2 * n + voter * n + ballot] = 1.0
            elif self.phase == VOTE and 0 <= self.own(seat) < n:
                x[at + 2 * n + seat * n + self.own(seat)] = 1.0
        if rules.width > rules.codes_at:
            self._heard_by(x, first, seat)
        return x

    def _heard_by(self, x: NDArray[np.float32], first: int, listener: int) -> None:
        """Codes and arguments of the rounds from ``first`` on."""
        rules, n = self.rules, self.rules.n
        talks = [talk[1:] for talk in self.talks[first:]]
        if self.phase == TALK:
            talks.append((self._spread(self.codes), self._spread(self.arguments)))
        for number, heard in enumerate(talks):
            for seat, (code, argument) in enumerate(zip(*heard, strict=True)):
                at = number * n + seat
                if code >= 0:
                    x[rules.codes_at + at * rules.codes + code] = 1.0
                if argument > 0:
                    x[rules.arguments_at + at * n + (argument - 1) % n] = 1.0 if argument <= n else -1.0
        if self.naming and self.player() == listener:
            x[rules.arguments_at + 3 * n * n + self.buffer[-1] - n - 1] = 1.0

    def mask(self, seat: int) -> NDArray[np.int8]:
        """1 for each action that this seat may take now, ``[actions]``; all zero while another one is to move."""
        mask = np.zeros(self.rules.actions, np.int8)
        if self.player() == seat:
            mask[self.legal()] = 1
        return mask


def new_game(rules: Rules, rng: np.random.Generator) -> State:
    """A game that is dealt."""
    state = State(rules)
    state.play(state.sample_chance(rng))
    return state
