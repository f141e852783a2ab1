"""A Cicero-like player of Werewolf, which LSPO (2502.04686) compares itself with: predefined acts instead of latents.

Thirteen atomic acts, the same for every role: idle; target a player (seven); claim to be a Werewolf, the Seer, the
Doctor, a Villager; do not reveal the role. Deep CFR solves the game in which a speech is one of them, heard by all as
what it is (the paper trains a policy over them by reinforcement learning; this is LSPO's machinery with other latents).
At play a speech is drawn from the average strategy and put into words by the model, which is told the act; nights
and votes are drawn too. What others say is heard as an act by `ActEar`.
"""

from __future__ import annotations

import re
from pathlib import Path

from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_prompts import INTENT
from agentgym.envs.werewolf_rules import ROLES, Rules
from agentgym.envs.werewolf_text import name
from agentgym.trainers.lspo_pairs import Heard
from agentgym.trainers.lspo_play import StrategicPolicy, Strategist

from agentgym.arguments import ACCUSES, argument
from agentgym.cfr_search import Game
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.policies.base import Policy

IDLE, TARGET, HIDE = 0, 1, 6
"""Three of the kinds of act; those between are claims, in the order of `ROLES`."""
KINDS = (
    "say nothing of importance",
    "accuse {target} and ask the others to vote for it",
    *(f"claim that you are {'the' if role in ('Seer', 'Doctor') else 'a'} {role}" for role in ROLES),
    "speak, but do not reveal your role",
)
_CLAIM = re.compile(r"\bI(?: am|['’]m) (?:the |a |an )?(?:real |true |simple )?(werewolf|seer|doctor|villager)", re.I)
_HIDES = re.compile(r"\b(?:not|n['’]t|never|cannot) (?:\w+ )?(?:reveal|tell|say|share)\b", re.I)


def act_rules(own: Rules) -> Rules:
    """The abstract game of a game: every role has all kinds of act, and each is heard as what it is."""
    k = len(KINDS)
    heard = [[float(a == b) for b in range(k)] for a in range(k)]
    stances = [[ACCUSES if kind == TARGET else 0 for kind in range(k)]] * len(ROLES)
    latents, book = (k,) * len(ROLES), [heard] * len(ROLES)
    return Rules(own.n, own.parity, own.rewards, latents, book, own.abstain, own.max_rounds, stances)


class ActEar:
    """Hears a speech as an act: an accusation before a claim, a claim before anything else."""

    def __init__(self, players: int):
        """Hear in a game of so many players."""
        self.players = players

    def __call__(self, seat: int, role: int, text: str) -> Heard:
        """Hear what a seat said."""
        stance, target = argument(text, seat, self.players)
        if stance == ACCUSES:
            return Heard(TARGET, TARGET, target)
        claim = _CLAIM.search(text)
        kind = TARGET + 1 + ROLES.index(claim[1].capitalize()) if claim else HIDE if _HIDES.search(text) else IDLE
        return Heard(kind, kind, self.players)


def solve(own: Rules, config: DeepCFRConfig, iterations: int, folder: Path | None = None, seed: int = 0) -> Strategist:
    """Deep CFR on the game of acts.

    Args:
        own: Rules of the game of text.
        config: Of Deep CFR; LSPO's is ``depth=2, scale=300``.
        iterations: Of Deep CFR.
        folder: Where it is kept, and gone on with.
        seed: Of Deep CFR.
    """
    rules = act_rules(own)
    game = Game(State(rules), rules.n, rules.actions, rules.width, len(ROLES), lambda state, at: state.roles[at])
    solver = DeepCFR(game, config, seed)
    if folder is not None:
        solver.resume(folder)
    while solver.t < iterations or solver.average_net is None:
        if solver.t < iterations:
            solver.step()
        if solver.t >= iterations:
            solver.fit_average()
        if folder is not None:
            solver.save(folder)
    return Strategist(solver, rules, ActEar(rules.n))


def intent(role: int, kind: int, seat: int, target: int) -> str:
    """What the model is told of an act."""
    whom = name(target) if kind == TARGET and target >= 0 else "somebody"
    return INTENT.format(KINDS[kind].format(target=whom))


def cicero(inner: Policy, strategist: Strategist) -> StrategicPolicy:
    """A model that says and does what the strategy over acts decides."""
    n = strategist.rules.n

    def told(role: int, kind: int, seat: int, target: int) -> str:
        return intent(role, kind, seat, target if target < n else -1)

    return StrategicPolicy(inner, strategist, "intent", intents=told)
