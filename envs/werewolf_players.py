"""Werewolf: scripted players, weak and strong, which need no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from agentgym.envs.werewolf_game import TALK, VOTE, State
from agentgym.envs.werewolf_record import Dawn, Own, Proposal, View, view
from agentgym.envs.werewolf_rules import DOCTOR, SEER, VILLAGER, WOLF
from agentgym.envs.werewolf_speech import Act, heard, say, speeches
from agentgym.envs.werewolf_text import write_speech

from agentgym.errors import unknown
from agentgym.policies.scripted import ScriptedPolicy

Player = Callable[[View, np.random.Generator], str]
"""A legal action of ``View.commands``, or a speech as plain text."""


@dataclass(frozen=True)
class Style:
    """How a scripted player plays.

    Attributes:
        trust: How far it believes who claims to be the Seer, 0 to 1.
        reveal: Whether as Seer it says what it saw.
        fake: How likely it is to claim, as Werewolf, to be the Seer.
        talk: Whether it says whom it suspects.
        noise: Random part of its votes; the report of a believed Seer weighs 3.
        caution: Abstains if nobody is suspected so much; minus infinity never abstains.
    """

    trust: float = 1.0
    reveal: bool = True
    fake: float = 1.0
    talk: bool = True
    noise: float = 0.3
    caution: float = -np.inf


STYLES = {
    "scripted": Style(),
    "cautious": Style(fake=0.5, caution=0.3),
    "quiet": Style(reveal=False, fake=0.0, talk=False),
    "naive": Style(fake=0.0, noise=2.0),
}
"""Name -> style of `Scripted`."""


def random_player(view: View, rng: np.random.Generator) -> str:
    """Uniform over the legal actions, and over what could be said."""
    if view.phase == TALK:
        kinds = speeches(view)
        return kinds[int(rng.integers(len(kinds)))][1]
    return view.commands[int(rng.integers(len(view.commands)))]


class Scripted:
    """Plays by simple sense: believes Seers, votes for who is accused, kills Seers.

    It knows what its `View` holds and what it hears in the grammar of `agentgym.envs.werewolf_speech`.
    """

    def __init__(self, style: Style):
        """Play in a style."""
        self.style = style

    def __call__(self, view: View, rng: np.random.Generator) -> str:
        """Decide."""
        if view.phase == TALK:
            return self._speak(view, rng)
        if view.phase == VOTE:
            return self._vote(view, rng)
        targets = [int(command.rpartition("_")[2]) for command in view.commands]
        choose = {WOLF: self._kill, SEER: self._see, DOCTOR: self._save}[view.role]
        return view.commands[targets.index(choose(view, targets, rng))]

    # ---- at night ------------------------------------------------------------------------------------

    def _kill(self, view: View, targets: list[int], rng: np.random.Generator) -> int:
        said = heard(view)
        wanted = [s for s, act in said if _claims_seer(act) and s in targets]
        wanted = wanted or [s for s, act in said if act.kind == "claim_doctor" and s in targets]
        wanted = wanted or [e.target for e in view.events if isinstance(e, Proposal) and e.round == view.round]
        return wanted[0] if wanted else _any(targets, rng)

    def _see(self, view: View, targets: list[int], rng: np.random.Generator) -> int:
        seen = {e.target for e in view.events if isinstance(e, Own)}
        return _any([t for t in targets if t not in seen] or targets, rng)

    def _save(self, view: View, targets: list[int], rng: np.random.Generator) -> int:
        score = suspicion(view, self.style)
        seers = {s for s, act in heard(view) if _claims_seer(act) and s in targets and score[s] <= 0}
        return min(seers) if seers else _any([t for t in targets if score[t] <= 0.5] or targets, rng)

    # ---- by day --------------------------------------------------------------------------------------

    def _vote(self, view: View, rng: np.random.Generator) -> str:
        others = [s for s in view.alive if s != view.seat]
        targets = [s for s in others if s not in view.mates] or others
        score = suspicion(view, self.style)
        if "abstain" in view.commands and max(score[t] for t in targets) < self.style.caution:
            return "abstain"
        found = [score[t] + self.style.noise * rng.random() for t in targets]
        return f"vote player_{targets[int(np.argmax(found))]}"

    def _speak(self, view: View, rng: np.random.Generator) -> str:
        if view.role == WOLF:
            return self._lie(view, rng)
        said = heard(view)
        seers = {s for s, act in said if _claims_seer(act) and s != view.seat}
        if view.role == SEER and self.style.reveal:
            checks = {e.target: e.wolf for e in view.events if isinstance(e, Own)}
            reports = [Act("report_wolf" if wolf else "report_good", t) for t, wolf in checks.items()]
            if seers or any(checks.values()):
                return say(Act("claim_seer"), *reports, *(Act("liar", s) for s in sorted(seers)))
        accusers = [s for s, act in said if act == Act("report_wolf", view.seat)]
        if accusers:
            claim = (Act("claim_doctor"),) if view.role == DOCTOR else (Act("claim_villager"),)
            return say(*claim, Act("liar", accusers[-1]))
        score = suspicion(view, self.style)
        suspect = max((s for s in view.alive if s != view.seat), key=lambda s: score[s])
        if self.style.talk and score[suspect] > max(0.3, self.style.caution):
            return say(Act("call", suspect))
        return say(Act("claim_villager") if self.style.talk and view.role == VILLAGER else Act("pass"))

    def _lie(self, view: View, rng: np.random.Generator) -> str:
        said = heard(view)
        others = [s for s in view.alive if s != view.seat and s not in view.mates]
        mine = [act for s, act in said if s == view.seat]
        rivals = [s for s, act in said if _claims_seer(act) and s in others]
        mates_claim = any(_claims_seer(act) for s, act in said if s in view.mates)
        claimed = any(_claims_seer(act) for act in mine)
        if claimed or (not mates_claim and rng.random() < self.style.fake):
            old = [act for act in mine if act.kind == "report_wolf" and act.target in others]
            target = rivals[0] if rivals else old[0].target if old else _any(others, rng)
            return say(Act("claim_seer"), Act("report_wolf", target))
        if rivals and any(act.kind == "report_wolf" and act.target == view.seat for _, act in said):
            return say(Act("claim_villager"), Act("liar", rivals[0]))
        score = suspicion(view, self.style)
        suspect = max(others, key=lambda s: score[s])
        if self.style.talk and score[suspect] > 0:
            return say(Act("call", suspect))
        return say(Act("claim_villager") if self.style.talk else Act("pass"))


def _claims_seer(act: Act) -> bool:
    return act.kind == "claim_seer" or act.kind.startswith("report")


def _any(seats: list[int], rng: np.random.Generator) -> int:
    return seats[int(rng.integers(len(seats)))]


def suspicion(view: View, style: Style) -> list[float]:
    """How much each seat looks like a Werewolf to this seat, ``[n]``: 0 unknown, 3 a report of a Seer who is believed.

    A Werewolf judges as if it did not know who the others are.
    """
    known = _known(view)
    said = heard(view)
    score = [0.0] * view.n
    claimants = {s for s, act in said if _claims_seer(act) and s != view.seat}
    liars = {s for s in claimants if view.role == SEER or known.get(s)}
    for speaker, act in said:
        told = act.kind == "report_wolf"
        if act.kind.startswith("report") and known.get(act.target, told) != told and speaker != view.seat:
            liars.add(speaker)
    honest = claimants - liars
    weight = style.trust / max(1, len(honest))
    for seat in honest:
        score[seat] += 0.5 if len(honest) > 1 else -1.5
    for seat in liars:
        score[seat] += 4.0
    worth = {
        "report_wolf": 3.0 * weight,
        "report_good": -2.0 * weight,
        "accuse": 0.4,
        "call": 0.4,
        "liar": 0.5,
        "trust": -0.3,
    }
    for speaker, act in dict.fromkeys(said):
        believed = speaker not in liars and speaker != view.seat and not known.get(speaker)
        if act.target >= 0 and believed:
            score[act.target] += worth[act.kind] if not act.kind.startswith("report") or speaker in honest else 0.0
    for seat, wolf in known.items():
        score[seat] = 10.0 if wolf else -10.0
    return score


def _known(view: View) -> dict[int, bool]:
    """Seats whose side is certain: oneself, who was killed at night, what the Seer saw, whom the Doctor has saved."""
    known = {} if view.role == WOLF else {view.seat: False}
    guarded = -1
    for event in view.events:
        if isinstance(event, Own):
            if event.wolf is not None:
                known[event.target] = event.wolf
            guarded = event.target if event.verb == "save" else -1
        elif isinstance(event, Dawn):
            safe = event.victim if event.victim >= 0 else guarded
            if safe >= 0:
                known[safe] = False
            guarded = -1
    return known


class PlayerPolicy(ScriptedPolicy):
    """A scripted player as a policy, for self-play with `agentgym.envs.werewolf`."""

    def __init__(self, name: str, brief: bool = False):
        """Play as a key of `PLAYERS`.

        Args:
            name: Which player.
            brief: Whether the environment takes speeches as plain text.

        Raises:
            ConfigError: If there is none of this name.
        """
        super().__init__()
        if name not in PLAYERS:
            raise unknown("player", name, PLAYERS)
        self.name, self._brief = name, brief

    def act(self, info: Mapping[str, Any], turn: int, rng: np.random.Generator) -> str:
        """Decide."""
        seen: View = info["view"]
        said = PLAYERS[self.name](seen, rng)
        return said if seen.commands or self._brief else write_speech(said)


PLAYERS: dict[str, Player] = {"random": random_player, **{name: Scripted(style) for name, style in STYLES.items()}}
"""Name -> scripted player."""


def number_of(player: Player, state: State, rng: np.random.Generator) -> int:
    """The action of a scripted player as a number, for abstract play; a latent strategy is drawn uniformly."""
    legal = state.legal()
    if state.phase == TALK:
        return legal[int(rng.integers(len(legal)))]
    seen = view(state, state.player(), {})
    return legal[seen.commands.index(player(seen, rng))]
