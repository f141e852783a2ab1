"""Werewolf: what a game is played by (roles, ends, rewards), fixed before it starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentgym.errors import ConfigError, unknown

if TYPE_CHECKING:
    from agentgym.envs.werewolf_game import State

WOLF, SEER, DOCTOR, VILLAGER = range(4)
ROLES = ("Werewolf", "Seer", "Doctor", "Villager")
CASTS = {7: (WOLF, WOLF, SEER, DOCTOR, VILLAGER, VILLAGER, VILLAGER), 4: (WOLF, SEER, VILLAGER, VILLAGER)}
"""Number of players -> the roles that are dealt."""
PARITIES = ("geq", "gt")

Codebook = Sequence[Sequence[Sequence[float]]]
"""``codebook[role][latent]``: the distribution of the public code that the others hear, ``[K_pub]``."""
Stances = Sequence[Sequence[int]]
"""``stances[role][latent]``: 1 if such a speech accuses a seat, -1 if it clears one, 0 if it is about nobody."""


@dataclass(frozen=True)
class Table:
    """A reward table: what winning is worth, and what a night and a vote add to the totals of the seats."""

    win: float
    night: Callable[[State, list[float], int, int, int, int], None]
    vote: Callable[[State, list[float], Sequence[int], int], None]


def _nothing(*_: object) -> None:
    pass


def _lspo_vote(state: State, totals: list[float], ballots: Sequence[int], out: int) -> None:
    """LSPO, before ``out`` leaves: votes of the village +-20, eliminated -10, sides +-5, survivors +5."""
    wolves, n = state.wolves, state.rules.n
    for seat in state.rules.seats[state.alive]:
        village, ballot = not wolves >> seat & 1, ballots[seat]
        if village and 0 <= ballot < n:
            totals[seat] += 20.0 if wolves >> ballot & 1 else -20.0
        if seat == out:
            totals[seat] -= 10.0
            continue
        if out >= 0:
            totals[seat] += 5.0 if village == bool(wolves >> out & 1) else -5.0
        totals[seat] += 5.0


def _to_sides(state: State, totals: list[float], wolves: float, village: float) -> None:
    for seat in state.rules.seats[state.alive]:
        totals[seat] += wolves if state.wolves >> seat & 1 else village


def _sla_night(state: State, totals: list[float], kill: int, save: int, check: int, doctor: int) -> None:
    """SLA, before the victim leaves: a kill, a save, a wolf found."""
    if check >= 0 and state.wolves >> check & 1:
        _to_sides(state, totals, -2.0, 0.0)
        totals[state.roles.index(SEER)] += 2.0
    if kill != save:
        _to_sides(state, totals, 5.0, -5.0)
    else:
        _to_sides(state, totals, -5.0, 0.0)
        totals[doctor] += 5.0


def _sla_vote(state: State, totals: list[float], ballots: Sequence[int], out: int) -> None:
    """SLA, before ``out`` leaves: who is eliminated +-5, each vote of the village +-1."""
    wolves, n = state.wolves, state.rules.n
    for seat in state.rules.seats[state.alive & ~wolves]:
        if 0 <= ballots[seat] < n:
            worth = 1.0 if wolves >> ballots[seat] & 1 else -1.0
            totals[seat] += worth
            for wolf in state.rules.seats[state.alive & wolves]:
                totals[wolf] -= worth
    if out >= 0:
        worth = 5.0 if wolves >> out & 1 else -5.0
        _to_sides(state, totals, -worth, worth)


TABLES = {
    "lspo": Table(300.0, _nothing, _lspo_vote),
    "sla": Table(100.0, _sla_night, _sla_vote),
    "win": Table(1.0, _nothing, _nothing),
}
"""Reward tables: of LSPO, of SLA, and nothing but +-1 for the winning and losing side."""


class Rules:
    """One setting of the game, with the tables that make its states cheap.

    Attributes:
        n: Players.
        k: Latent strategies of the role that has most.
        actions: Number of actions: ``n`` targets, abstaining, ``k`` latent strategies.
        codes: Number of public codes, 0 without a codebook.
        stances: `Stances`; all 0 where speeches have no argument.
        deals: All deals, each a tuple of roles by seat and the bits of its wolves; equally likely.
        seats: Bits of a set of seats -> the seats, ascending.
        width: Length of a state's vector.
        codes_at, arguments_at: Where in it the codes that were heard begin, and the arguments.
    """

    def __init__(
        self,
        players: int = 7,
        parity: str = "geq",
        rewards: str = "lspo",
        latents: Sequence[int] = (3, 2, 2, 2),
        codebook: Codebook | None = None,
        abstain: bool = True,
        max_rounds: int = 10,
        stances: Stances | None = None,
    ):
        """Check the arguments.

        Args:
            players: 7 (2 Werewolves, Seer, Doctor, 3 Villagers) or 4 (Werewolf, Seer, 2 Villagers).
            parity: ``geq``: the wolves win as soon as they are as many as the others; ``gt``: as soon as they are more.
            rewards: A key of `TABLES`.
            latents: Number of latent strategies of Werewolf, Seer, Doctor, Villager.
            codebook: What the others hear of a speech, `Codebook`; without one they hear nothing.
            abstain: Whether a vote may name nobody.
            max_rounds: A game without winner after so many rounds is truncated.
            stances: Which latent strategies are about a seat that the speaker then names, `Stances`; all hear it. The
                Seer names only what it saw: where it may say anything, play starts with talk at random, to which
                nobody then has a reason to listen, nor the Seer one to say what it saw.

        Raises:
            ConfigError: A wrong argument.
        """
        if players not in CASTS:
            raise ConfigError(f"players must be {' or '.join(map(str, CASTS))}, not {players!r}")
        if parity not in PARITIES:
            raise unknown("parity", str(parity), PARITIES)
        if rewards not in TABLES:
            raise unknown("rewards", str(rewards), TABLES)
        if max_rounds < 1:
            raise ConfigError(f"max_rounds must be at least 1, not {max_rounds}")
        if len(latents) != len(ROLES) or min(latents) < 1:
            raise ConfigError(f"latents must be four numbers of at least 1 ({', '.join(ROLES)}), not {latents!r}")
        self.n, self.parity, self.abstain, self.max_rounds = players, parity, bool(abstain), max_rounds
        self.rewards, self.table, self.latents = rewards, TABLES[rewards], tuple(latents)
        self.codebook, self.codes = _checked(codebook, self.latents), 0
        if self.codebook is not None:
            self.codes = len(self.codebook[0][0])
        self.k = max(self.latents)
        self.actions = players + 1 + self.k
        self.deals = [
            (roles, sum(1 << seat for seat, role in enumerate(roles) if role == WOLF))
            for roles in sorted(set(itertools.permutations(CASTS[players])))
        ]
        self.seats = [tuple(s for s in range(players) if bits >> s & 1) for bits in range(1 << players)]
        self.speeches = [tuple(range(players + 1, players + 1 + count)) for count in self.latents]
        told = stances is not None
        self.stances = tuple(map(tuple, stances if stances is not None else [[0] * count for count in self.latents]))
        if [len(role) for role in self.stances] != list(self.latents) or {*sum(self.stances, ())} - {-1, 0, 1}:
            raise ConfigError(f"stances must hold -1, 0 or 1 for each role and latent strategy ({self.latents})")
        self.codes_at = 2 * players + 8 + 3 * (2 * players + players**2)
        self.arguments_at = self.codes_at + 3 * players * self.codes
        self.width = self.arguments_at + told * (3 * players**2 + self.k)


def _checked(codebook: Codebook | None, latents: Sequence[int]) -> tuple[tuple[tuple[float, ...], ...], ...] | None:
    if codebook is None:
        return None
    book = tuple(tuple(tuple(map(float, row)) for row in role) for role in codebook)
    widths = {len(row) for role in book for row in role}
    if [len(role) for role in book] != list(latents) or len(widths) != 1:
        raise ConfigError(
            f"codebook must hold one distribution a role and latent strategy ({tuple(latents)}), all alike"
        )
    if any(min(row) < 0 or abs(sum(row) - 1) > 1e-6 for role in book for row in role):
        raise ConfigError("codebook: every row must be a distribution")
    return book
