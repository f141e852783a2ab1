"""Whom a speech is about: the seat that it accuses or clears.

The rule, for any English in which seats are called ``player_3``: in a clause, a name goes with the nearest cue, a word
that accuses (*Werewolf*, *suspicious*, *lying*, *vote for*, ...) or clears (*trust*, *innocent*, *is the Seer*, ...). A
*not* before the cue and behind the one before it turns it round. The first seat that is accused counts; if none is, the
first that is cleared. So irony, and what somebody else is said to have said, are misheard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ACCUSES, CLEARS, NOBODY = 1, -1, 0
"""The stance of a speech."""

_CLAUSES = re.compile(r"[.!?;\n]+|\b(?:but|however|while|because|although)\b", re.IGNORECASE)
_NAMES = re.compile(r"\bplayer[ _]?(\d+)\b|\b(someone)\b", re.IGNORECASE)
_CUES = re.compile(
    r"\b(?:(?P<accuses>werewol(?:f|ves)|wol(?:f|ves)|suspect\w*|suspici\w+|accus\w+|lying|liars?|lie[sd]?|guilty|evil|"
    r"vot(?:e|ed|ing)|eliminat\w+|fak(?:e|ed|ing))|"
    r"(?P<clears>trust\w*|innocent|clear(?:ed)?|good|safe|honest|believe\w*|"
    r"is (?:the|a|our) (?:real |true )?(?:seer|doctor|villager)))\b",
    re.IGNORECASE,
)
_COMMA = 20
"""Characters for which a comma counts, when it is asked which cue is nearest."""
_NOT = re.compile(r"\b(?:not|never|no|cannot)\b|n't\b|n’t\b", re.IGNORECASE)


def stance(text: str) -> int:
    """The stance of a speech in which seats are ``someone`` (`agentgym.latents.relative`)."""
    return _first([(sign, name) for sign, name in _said(text) if name < 0])[0]


def argument(text: str, speaker: int, n: int) -> tuple[int, int]:
    """The stance of a speech, and the seat that it is about (``n`` if it is about nobody).

    Args:
        text: What was said.
        speaker: The seat that said it, which its speech is not about.
        n: Number of seats; higher numbers name none.
    """
    found, seat = _first([(sign, name) for sign, name in _said(text) if 0 <= name < n and name != speaker])
    return found, seat if found else n


def _first(said: list[tuple[int, int]]) -> tuple[int, int]:
    return next((one for sign in (ACCUSES, CLEARS) for one in said if one[0] == sign), (NOBODY, -1))


def _said(text: str) -> Iterator[tuple[int, int]]:
    """Sign and seat (-1: someone) of each name that goes with a cue."""
    for clause in _CLAUSES.split(text):
        cues = [(cue.start(), cue.end(), ACCUSES if cue["accuses"] else CLEARS) for cue in _CUES.finditer(clause)]
        for name in _NAMES.finditer(clause) if cues else ():
            start, _, sign = min(cues, key=lambda cue: _distance(clause, name.span(), cue))
            before = max((end for _, end, _ in cues if end <= start), default=0)
            turned = _NOT.search(clause, before, start) is not None
            yield -sign if turned else sign, int(name[1]) if name[1] else -1


def _distance(clause: str, name: tuple[int, int], cue: tuple[int, int, int]) -> int:
    """Characters between a name and a cue."""
    start, stop = (name[1], cue[0]) if cue[0] >= name[1] else (cue[1], name[0])
    return stop - start + _COMMA * clause.count(",", start, stop)
