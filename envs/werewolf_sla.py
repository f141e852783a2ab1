"""SLA (Xu et al. 2024, 2310.18940) around any model: deduce who is who, write candidates, let a chooser take one.

| step | here |
|---|---|
| the record: facts, potential truths (speaker's reliability > 6), potential deceptions | `Memory.record` |
| reliability: 11 - confidence of who is thought a Werewolf, 6 of who is uncertain, else the confidence | `Deduction` |
| statements that no deduction cites are dropped | `Memory.learn` |
| N candidates: one prompt for actions, N prompts for statements | `SLAPolicy._actions`, `SLAPolicy._statements` |
| a policy that takes one of them | `Choose`; `agentgym.trainers.sla` learns, the default is chance |

The record is read from the conversation, so this works wherever the game is told in text. ``Trajectory.info`` counts
``deduced``, ``undeduced`` (what could not be read), ``thoughts_lost`` (turns without room in the context).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from agentgym.envs import werewolf_prompts as prompts
from agentgym.envs.werewolf_agents import PromptedPolicy
from agentgym.envs.werewolf_rules import ROLES
from agentgym.envs.werewolf_text import objects, parse, write_action

from agentgym.errors import ConfigError
from agentgym.policies.base import Generation, Policy, Request, Session
from agentgym.types import Candidate, Message

_SPEECH = re.compile(r"(?:Day \d+: )?(player_\d+)(?: said: |: )")
_FACT = re.compile(r"(?:You are |Night \d+: |Day \d+: |you |player_\d+ |votes )")
_UNKNOWN = 6


class Deduction(NamedTuple):
    """What is thought of a player; ``role`` is None if uncertain."""

    role: str | None
    confidence: int
    evidence: tuple[int, ...] = ()

    @property
    def reliability(self) -> int:
        """How far its statements are relied on."""
        if self.role is None:
            return _UNKNOWN
        return 11 - self.confidence if self.role == ROLES[0] else self.confidence


@dataclass
class Memory:
    """What a seat keeps in mind over a game.

    Attributes:
        episode: Its group, and its key in it.
        turns: Turns written.
        deduced: Player -> what is thought of it.
        dropped: Statements that were never cited.
    """

    episode: tuple[str, tuple[int, ...]] = ("", ())
    turns: int = 0
    deduced: dict[str, Deduction] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def record(self, messages: Sequence[Message]) -> dict[str, list[tuple[int, str]]]:
        """Numbered lines of the conversation: ``facts``, ``truths``, ``deceptions``."""
        lines = [line for m in messages if m["role"] == "user" for line in str(m["content"]).split("\n")]
        found: dict[str, list[tuple[int, str]]] = {"facts": [], "truths": [], "deceptions": []}
        known = [line for line in dict.fromkeys(lines) if _SPEECH.match(line) or _FACT.match(line)]
        for number, line in enumerate((line for line in known if line not in self.dropped), start=1):
            kind = "facts"
            if speech := _SPEECH.match(line):
                thought = self.deduced.get(speech[1])
                kind = "truths" if thought and thought.reliability > _UNKNOWN else "deceptions"
            found[kind].append((number, line))
        return found

    def learn(self, record: Mapping[str, list[tuple[int, str]]], deduced: Mapping[str, Deduction]) -> None:
        """Take over a deduction from a record."""
        self.deduced.update(deduced)
        cited = {number for thought in deduced.values() for number in thought.evidence}
        said = [*record["truths"], *record["deceptions"]]
        self.dropped |= {line for number, line in said if number not in cited}


def read_deductions(text: str) -> dict[str, Deduction]:
    """The deductions in a model's answer; what cannot be read is left out."""
    found = {}
    for one in objects(text):
        for player, thought in one.items():
            if re.fullmatch(r"player_\d+", player) and isinstance(thought, dict):
                role, confidence, evidence = (thought.get(key) for key in ("role", "confidence", "evidence"))
                sure = min(10, max(5, confidence)) if isinstance(confidence, int) else 5
                cited = evidence if isinstance(evidence, list) else []
                found[player] = Deduction(
                    role if role in ROLES else None, sure, tuple(i for i in cited if isinstance(i, int))
                )
    return found


class Choice(NamedTuple):
    """What a chooser may look at.

    Attributes:
        request: The turn.
        deduced: What is thought of the players.
        texts: The candidates.
        at: Group and key of the episode (as a session's `begin` has them), and number of the turn.
    """

    request: Request
    deduced: Mapping[str, Deduction]
    texts: Sequence[str]
    at: tuple[str, tuple[int, ...], int]


Choose = Callable[[Choice], int]
"""The number of the candidate to take."""


def by_chance(choice: Choice) -> int:
    """Any of them."""
    return int(choice.request.rng.integers(len(choice.texts)))


class SLAPolicy(PromptedPolicy):
    """Deduces, writes candidates, takes one."""

    kind = "sla"

    def __init__(self, inner: Policy, candidates: int = 3, choose: Choose = by_chance):
        """Wrap a model.

        Args:
            inner: The model.
            candidates: N.
            choose: Takes one of them.

        Raises:
            ConfigError: If there are fewer than 2 candidates.
        """
        if candidates < 2:
            raise ConfigError(f"candidates is {candidates}: it must be at least 2")
        super().__init__(inner)
        self.candidates, self.choose = candidates, choose

    def remember(self, key: tuple[int, ...], group: str) -> Memory:
        """Nothing is known yet."""
        return Memory((group, key))

    async def think(self, inner: Session, request: Request, memory: Memory) -> Generation:
        """Deduction, candidates, choice."""
        counted: Counter[str] = Counter()
        memory.turns += 1
        await self._deduce(inner, request, memory, counted)
        commands = request.info.get("admissible_commands") or []
        write = self._actions if commands else self._statements
        found = await write(inner, request, prompts.SLA_DEDUCED.format(deduced=_told(memory.deduced)), counted)
        texts = [self.text(generation) for generation in found]
        taken = (
            self.choose(Choice(request, memory.deduced, texts, (*memory.episode, memory.turns - 1)))
            if len(found) > 1
            else 0
        )
        kept = [Candidate(g.ids, len(text.split()), sum(g.logps)) for g, text in zip(found, texts, strict=True)]
        return replace(found[taken], candidates=kept, usage=counted)

    async def _deduce(self, inner: Session, request: Request, memory: Memory, counted: Counter[str]) -> None:
        record = memory.record(request.messages)
        lines = {kind: "\n".join(f"{i}. {line}" for i, line in some) or "(none)" for kind, some in record.items()}
        answer = await self.ask(inner, request, prompts.SLA_DEDUCE.format(roles=", ".join(ROLES), **lines))
        deduced = read_deductions(self.text(answer))
        counted.update(answer.usage, **{"deduced" if deduced else "undeduced": 1})
        if deduced:
            memory.learn(record, deduced)

    async def _statements(self, inner: Session, request: Request, told: str, counted: Counter[str]) -> list[Generation]:
        found: list[Generation] = []
        said = [told]
        for _ in range(self.candidates):
            found.append(await self.ask(inner, request, *said))
            counted.update(found[-1].usage)
            said += [self.text(found[-1]), prompts.SLA_ANOTHER]
        return found

    async def _actions(self, inner: Session, request: Request, told: str, counted: Counter[str]) -> list[Generation]:
        """The legal actions that were proposed; a plain answer if there are none."""
        commands = request.info["admissible_commands"]
        answer = await self.ask(inner, request, f"{told}\n{prompts.SLA_ACTIONS.format(n=self.candidates)}")
        counted.update(answer.usage)
        listed = next((one["candidates"] for one in objects(self.text(answer)) if "candidates" in one), None)
        proposed: dict[str, str] = {}
        for one in listed if isinstance(listed, list) else []:
            action = parse(str(one.get("action")), commands, brief=True).action if isinstance(one, dict) else None
            if action is not None:
                proposed.setdefault(action, str(one.get("reasoning", "")))
        if not proposed:
            answer = await self.ask(inner, request, told)
            counted.update(answer.usage)
            return [answer]
        plain = request.info.get("brief", True)  # a command by itself can be read everywhere
        texts = [action if plain else write_action(action, why) for action, why in proposed.items()]
        return [self._written(request, text) for text in texts[: self.candidates]]

    def _written(self, request: Request, text: str) -> Generation:
        """Text that the model did not sample by itself."""
        ids = request.encode_action(text)
        return Generation(ids, [math.nan] * len(ids), -1, "stop")


def _told(deduced: Mapping[str, Deduction]) -> str:
    lines = (f"{player}: {d.role or 'uncertain'}, confidence {d.confidence}" for player, d in deduced.items())
    return "\n".join(lines) or "nothing"
