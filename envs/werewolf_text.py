"""Werewolf in words: what a seat reads, and how what it writes becomes an action."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from agentgym.envs.werewolf_game import PHASES, TALK
from agentgym.envs.werewolf_record import Ballots, Dawn, Event, Out, Own, Proposal, Speech, View
from agentgym.envs.werewolf_rules import CASTS, DOCTOR, ROLES, SEER, WOLF, Rules

from agentgym.actions import Parsed

SPEECH_KEYS = ("statement", "discussion")
_TASKS = {
    WOLF: "choose whom to kill tonight",
    SEER: "choose a player and learn whether it is a Werewolf",
    DOCTOR: "choose whom to protect tonight, yourself if you like",
}
_MOST_OBJECTS = 50


def name(seat: int) -> str:
    """What a seat is called."""
    return f"player_{seat}"


def instructions(rules: Rules, brief: bool = False) -> str:
    """What a player reads first: the rules, and how to answer."""
    cast = CASTS[rules.n]
    if brief:
        return "Werewolf."
    dealt = ", ".join(_counted(role, cast.count(role)) for role in sorted(set(cast)))
    wolves = "two" if cast.count(WOLF) == 2 else "one"
    parity = "as many as" if rules.parity == "geq" else "more than"
    lines = [
        f"You play Werewolf with {rules.n} players, {name(0)} to {name(rules.n - 1)}. Roles are secret: {dealt}.",
        "The Werewolves know each other and want to outnumber the rest; everybody else is the village and wants "
        "to vote the Werewolves out.",
        "Each round begins with a night: the Werewolves kill a player, the Seer learns whether a player is a Werewolf"
        + (", the Doctor protects a player from being killed." if DOCTOR in cast else "."),
        *(
            ["Of two Werewolves the one with the lower number proposes and the other one decides."]
            if wolves == "two"
            else []
        ),
        "Then comes the day: it is announced who was killed, every living player speaks once, in ascending order, "
        "and all vote at the same time. Who has most votes is out; a tie is broken by lot. Roles are never revealed.",
        f"The village wins when no Werewolf is left. The Werewolves win when they are {parity} the others.",
        'Answer with one JSON object. At night and in the vote: {"reasoning": "...", "action": "..."}, where the '
        'action is one of those listed. In the discussion: {"reasoning": "...", "statement": "..."}. Only the '
        "statement is heard by the others.",
    ]
    return "\n".join(lines)


def _counted(role: int, count: int) -> str:
    many = "Werewolves" if role == WOLF else f"{ROLES[role]}s"
    return f"{count} {ROLES[role] if count == 1 else many}"


def record(view: View, brief: bool = False) -> list[str]:
    """A line for who one is, then one for each event; a longer record begins with the shorter one."""
    tell = _told_briefly if brief else _told
    return [_who(view, brief), *(tell(event, view.n) for event in view.events)]


def ask(view: View, brief: bool = False) -> str:
    """What the seat is asked to do now, with all it may do."""
    if brief:
        asked = "say" if view.phase == TALK else view.commands[0].split()[0]
        return f"{PHASES[view.phase]} {view.round} alive {' '.join(map(str, view.alive))}\n{asked}?"
    day = f"night {view.round}" if view.phase == 0 else f"day {view.round}"
    where = f"It is {day}. Living players: {', '.join(map(name, view.alive))}."
    if view.phase == TALK:
        return f'{where}\nIt is your turn to speak. Answer with {{"reasoning": "...", "statement": "..."}}.'
    task = _TASKS[view.role] if view.phase == 0 else "vote for the player to be eliminated"
    if "abstain" in view.commands:
        task += ", or abstain"
    what = f"As the {ROLES[view.role]}, {task}." if view.phase == 0 else f"{task.capitalize()}."
    return f'{where}\n{what} Actions: {"; ".join(view.commands)}.\nAnswer with {{"reasoning": "...", "action": "..."}}.'


def _who(view: View, brief: bool) -> str:
    mates = " and ".join(map(name, view.mates))
    if brief:
        return f"{name(view.seat)} {ROLES[view.role].lower()}{f' with {mates}' if mates else ''}"
    with_whom = f" The other Werewolf is {mates}." if mates else ""
    return f"You are {name(view.seat)}. Your role: {ROLES[view.role]}.{with_whom}"


def _told(event: Event, n: int) -> str:
    match event:
        case Own(number, verb, target, wolf, proposal):
            if verb == "see":
                return f"Night {number}: you saw that {name(target)} is {'a' if wolf else 'not a'} Werewolf."
            done = "proposed to kill" if proposal else "decided to kill" if verb == "kill" else "protected"
            return f"Night {number}: you {done} {name(target)}."
        case Proposal(number, seat, target):
            return f"Night {number}: {name(seat)} proposes to kill {name(target)}; you decide."
        case Dawn(number, victim):
            return f"Day {number}: {name(victim) if victim >= 0 else 'nobody'} was killed last night."
        case Speech(number, seat, text):
            return f"Day {number}: {name(seat)} said: {json.dumps(text, ensure_ascii=False)}"
        case Ballots(number, targets):
            cast = (
                f"{name(voter)} {'abstained' if target == n else f'for {name(target)}'}"
                for voter, target in enumerate(targets)
                if target >= 0
            )
            return f"Day {number}: votes: {', '.join(cast)}."
        case Out(number, seat, tied):
            if seat < 0:
                return f"Day {number}: nobody was eliminated."
            return f"Day {number}: {name(seat)} was eliminated{' by lot after a tie' if tied else ''}."


def _told_briefly(event: Event, n: int) -> str:
    match event:
        case Own(_, verb, target, wolf, _):
            return f"you {verb} {name(target)}{'' if wolf is None else ' werewolf' if wolf else ' good'}"
        case Proposal(_, seat, target):
            return f"{name(seat)} wants kill {name(target)}"
        case Dawn(_, victim):
            return f"{name(victim) if victim >= 0 else 'nobody'} killed"
        case Speech(_, seat, text):
            return f"{name(seat)}: {text}"
        case Ballots(_, targets):
            cast = (f"{voter}>{'-' if t == n else t}" for voter, t in enumerate(targets) if t >= 0)
            return f"votes {' '.join(cast)}"
        case Out(_, seat, _):
            return f"{name(seat) if seat >= 0 else 'nobody'} out"


def clean(text: str, most: int) -> str:
    """A speech as the others hear it: one line of printable characters, cut after ``most``.

    No line break survives, so that a speech cannot pass for a line of the record.
    """
    text = text[: 4 * most].encode(errors="replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most].rstrip()


def parse(text: str, commands: Sequence[str], brief: bool = False) -> Parsed:
    """Read a decision.

    Args:
        text: What a player wrote: a JSON object, with any text around it. A legal action by itself is taken too, and
            with ``brief`` the text itself is the speech.
        commands: The legal actions; none for a speech.
        brief: Speeches are plain text.

    Returns:
        One of the commands, or the statement; or what was wrong.
    """
    plain = _folded(text)
    legal = {_folded(command): command for command in commands}
    if plain in legal:
        return Parsed(legal[plain])
    if brief:
        return Parsed(None, f"write one of: {'; '.join(commands)}") if commands else Parsed(text)
    keys = ("action",) if commands else SPEECH_KEYS
    value = _value(text, keys)
    if value is None:
        return Parsed(None, f'no JSON object with the key "{keys[0]}" found')
    if not isinstance(value, str):
        return Parsed(None, f'"{keys[0]}" must be text')
    if not commands:
        return Parsed(value)
    if _folded(value) not in legal:
        return Parsed(None, f"{clean(value, 40)!r} is not one of your actions")
    return Parsed(legal[_folded(value)])


def _folded(text: str) -> str:
    return " ".join(text[:10_000].lower().split())


def _value(text: str, keys: Sequence[str]) -> object:
    """What stands under one of the keys in the first JSON object that has it; None if none has."""
    found = (one[key] for one in objects(text) for key in keys if one.get(key) is not None)
    return next(found, None)


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, those inside of others left out; at most 50 places are looked at."""
    decoder, at = json.JSONDecoder(strict=False), -1
    for _ in range(_MOST_OBJECTS):
        at = text.find("{", at + 1)
        if at < 0:
            return
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            continue
        except RecursionError:
            return
        yield found
        at = end - 1


def write_action(command: str, reasoning: str = "") -> str:
    """A decision of a night or a vote as a player should write it."""
    return json.dumps({"reasoning": reasoning, "action": command}, ensure_ascii=False)


def write_speech(statement: str, reasoning: str = "") -> str:
    """A speech as a player should write it."""
    return json.dumps({"reasoning": reasoning, "statement": statement}, ensure_ascii=False)
