"""Werewolf: what is counted in a game, and the shares over many games."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentgym.envs.werewolf_game import TRUNCATED, VILLAGE, WOLVES, State
from agentgym.envs.werewolf_rules import DOCTOR, SEER, WOLF

from agentgym.evaluate import Estimate, wilson

SHARES = {
    "win/wolves": ("won/wolves", "games"),
    "win/village": ("won/village", "games"),
    "truncated": ("lost/truncated", "games"),
    "vote/accuracy": ("votes/wolf", "votes/cast"),
    "vote/abstain": ("votes/abstain", "votes/all"),
    "doctor/save": ("doctor/saves", "doctor/nights"),
    "seer/hit": ("seer/wolves", "seer/nights"),
    "first_save": ("first/saved", "games"),
    "parse/failure": ("parse/failures", "parse/answers"),
    "parse/fallback": ("parse/fallbacks", "decisions"),
}
"""Share -> what is counted for it and what it is a share of."""


def count(state: State) -> dict[str, float]:
    """What happened in a game so far: counts, which can be added up over games.

    Votes are those of the village (Werewolves know whom they vote for). ``first/<verb>/<seat>`` is whom the action of
    that kind named in the first night, ``first/self_save`` whether the Doctor protected itself.
    """
    roles, n = state.roles, state.rules.n
    doctor = roles.index(DOCTOR) if DOCTOR in roles else -1
    seer = roles.index(SEER)
    votes = [t for ballots, _ in state.votes for s, t in enumerate(ballots) if t >= 0 and roles[s] != WOLF]
    checks = [acts[seer] for acts, _ in state.nights if acts[seer] >= 0]
    guarded = [victim for acts, victim in state.nights if doctor >= 0 and acts[doctor] >= 0]
    counted: dict[str, float] = {
        "games": 1,
        "rounds": state.round,
        "won/wolves": state.winner == WOLVES,
        "won/village": state.winner == VILLAGE,
        "lost/truncated": state.winner == TRUNCATED,
        "votes/all": len(votes),
        "votes/abstain": votes.count(n),
        "votes/cast": len(votes) - votes.count(n),
        "votes/wolf": sum(t < n and roles[t] == WOLF for t in votes),
        "doctor/nights": len(guarded),
        "doctor/saves": guarded.count(-1),
        "seer/nights": len(checks),
        "seer/wolves": sum(roles[t] == WOLF for t in checks),
    }
    if state.nights:
        acts, victim = state.nights[0]
        counted["first/saved"] = victim < 0
        decider = max(seat for seat in range(n) if roles[seat] == WOLF)
        for verb, seat in (("kill", decider), ("see", seer), ("save", doctor)):
            if seat >= 0:
                counted[f"first/{verb}/{acts[seat]}"] = 1
        if doctor >= 0:
            counted["first/self_save"] = acts[doctor] == doctor
    return {key: float(value) for key, value in counted.items()}


def total(games: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The counts of several games, added up."""
    keys = {key: None for game in games for key in game}
    return {key: sum(game.get(key, 0.0) for game in games) for key in keys}


def shares(games: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Rates over games with Wilson intervals, where there is something to count.

    The intervals of votes and nights take them for independent, which those of one game are not.
    """
    counts = total(games)
    return {
        share: wilson(counts[part], int(counts[whole]))
        for share, (part, whole) in SHARES.items()
        if part in counts and counts.get(whole, 0) > 0
    }
