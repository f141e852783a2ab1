"""Werewolf: a small grammar of speech acts, which scripted players speak and understand."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from agentgym.envs.werewolf_record import Own, Speech, View
from agentgym.envs.werewolf_rules import DOCTOR, SEER, WOLF


class Act(NamedTuple):
    """What a sentence does; ``target`` is -1 where it names nobody."""

    kind: str
    target: int = -1


SENTENCES = {
    "pass": "I have nothing to say.",
    "claim_seer": "I am the Seer.",
    "claim_doctor": "I am the Doctor.",
    "claim_villager": "I am a Villager.",
    "report_wolf": "I saw that player_{} is a Werewolf.",
    "report_good": "I saw that player_{} is not a Werewolf.",
    "accuse": "I think player_{} is a Werewolf.",
    "trust": "I trust player_{}.",
    "liar": "player_{} is lying.",
    "call": "Let us vote for player_{}.",
}
"""Kind of act -> its sentence."""

_PATTERNS = {
    kind: re.compile(re.escape(text).replace(r"\{\}", r"(\d)"), re.IGNORECASE) for kind, text in SENTENCES.items()
}
_ALWAYS = ("pass", "claim_villager", "accuse", "trust", "liar", "call")
_BY_ROLE = {WOLF: tuple(SENTENCES), SEER: ("claim_seer", *_ALWAYS), DOCTOR: ("claim_doctor", *_ALWAYS)}


def say(*acts: Act) -> str:
    """Acts as a speech."""
    return " ".join(SENTENCES[act.kind].format(act.target) for act in acts)


@functools.lru_cache(maxsize=8192)
def understand(text: str) -> tuple[Act, ...]:
    """The acts in a speech, in the order of `SENTENCES`; what is not of the grammar is not heard."""
    found = []
    for kind, pattern in _PATTERNS.items():
        found += [Act(kind, int(m.group(1)) if m.groups() else -1) for m in pattern.finditer(text)]
    return tuple(found)


def heard(view: View) -> list[tuple[int, Act]]:
    """Everything that was said so far in the grammar: speaker and act."""
    return [
        (e.seat, act) for e in view.events if isinstance(e, Speech) for act in understand(e.text) if act.target < view.n
    ]


def speeches(view: View) -> list[tuple[str, str]]:
    """What a seat could say now: kind of act and text, one for each target that makes sense.

    A Werewolf may lie in every way; the village reports only what is true, and targets are living others.
    """
    others = [seat for seat in view.alive if seat != view.seat]
    found = []
    for kind in _BY_ROLE.get(view.role, _ALWAYS):
        targets = others if "{}" in SENTENCES[kind] else [-1]
        seer = (Act("claim_seer"),) if kind.startswith("report") else ()
        found += [(kind, say(*seer, Act(kind, target))) for target in targets]
    if view.role == SEER:
        checks = {e.target: e.wolf for e in view.events if isinstance(e, Own)}
        for target, wolf in checks.items():
            kind = "report_wolf" if wolf else "report_good"
            found.append((kind, say(Act("claim_seer"), Act(kind, target))))
    return found
