"""Role predictions: before a vote a player says which role each other player has (a metric of LSPO, 2502.04686).

`PredictingPolicy` asks; what is predicted goes into ``Trajectory.info`` and nowhere else, and is drawn from a generator
of its own: the game and its transcripts are those of the policy inside. `accuracy` compares it with the deal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentgym.envs.werewolf_game import VOTE
from agentgym.envs.werewolf_players import STYLES, PlayerPolicy, Style, suspicion
from agentgym.envs.werewolf_prompts import PREDICT
from agentgym.envs.werewolf_record import View
from agentgym.envs.werewolf_replay import replay
from agentgym.envs.werewolf_rules import CASTS, DOCTOR, ROLES, SEER, VILLAGER, WOLF
from agentgym.envs.werewolf_speech import heard
from agentgym.envs.werewolf_text import objects

from agentgym.errors import ContextFull
from agentgym.evaluate import Estimate, wilson
from agentgym.policies.around import RememberingPolicy, asked
from agentgym.policies.base import Generation, Request, Session
from agentgym.types import Trajectory

_KEY = re.compile(r"predicted/(\d+)/(\d+)")


class PredictingPolicy(RememberingPolicy):
    """Another policy that is asked for its predictions before every vote.

    A scripted player is not asked: `guess` says what its suspicions come to. ``Trajectory.info`` holds
    ``predicted/ROUND/SEAT``, the number of a role, and counts ``predictions_unread`` and ``predictions_lost`` (no
    room).
    """

    def remember(self, key: tuple[int, ...], group: str) -> set[int]:
        """Rounds in which it was asked."""
        return set()

    async def reply(self, inner: Session, request: Request, memory: set[int]) -> Generation:
        """Write the turn as ever, and note the predictions."""
        seen: View | None = request.info.get("view")
        found: dict[str, int] = {}
        if seen is not None and seen.phase == VOTE and seen.round not in memory:
            memory.add(seen.round)
            own = replace(request, rng=request.rng.spawn(1)[0], info={})  # a question is no decision
            found = await self._predict(inner, own, seen)
        written = await inner.generate(request)
        return replace(written, usage={**written.usage, **found}) if found else written

    async def _predict(self, inner: Session, request: Request, seen: View) -> dict[str, int]:
        if isinstance(self.inner, PlayerPolicy):
            roles = guess(seen, STYLES.get(self.inner.name, Style()))
            return {f"predicted/{seen.round}/{seat}": role for seat, role in roles.items()}
        try:
            answer = await asked(
                inner, self.renderer, request, self.context_limit, PREDICT.format(roles=", ".join(ROLES))
            )
        except ContextFull:
            return {"predictions_lost": 1}
        roles = read(self.renderer.decode_reply(answer.ids), seen)
        told = {f"predicted/{seen.round}/{seat}": role for seat, role in roles.items()}
        return {**answer.usage, **told, **({} if roles else {"predictions_unread": 1})}


def read(text: str, seen: View) -> dict[int, int]:
    """Seat -> role, as far as an answer can be read."""
    names = {f"player_{seat}": seat for seat in range(seen.n) if seat != seen.seat}
    folded = {role.lower(): number for number, role in enumerate(ROLES)}
    found: dict[int, int] = {}
    for one in objects(text):
        for player, role in one.items():
            if player in names and isinstance(role, str) and role.lower() in folded:
                found.setdefault(names[player], folded[role.lower()])
    return found


def guess(seen: View, style: Style) -> dict[int, int]:
    """A likely deal to a scripted player: whom it suspects most are Werewolves, claims are true, the rest Villagers."""
    others = [seat for seat in range(seen.n) if seat != seen.seat]
    left = Counter(CASTS[seen.n])
    left[seen.role] -= 1
    found = dict.fromkeys(seen.mates, WOLF)
    left[WOLF] -= len(found)
    score, said = suspicion(seen, style), heard(seen)
    if seen.role != WOLF:
        suspects = sorted(others, key=lambda seat: -score[seat])
        found |= dict.fromkeys(suspects[: left[WOLF]], WOLF)
    for role, kind in ((SEER, "claim_seer"), (DOCTOR, "claim_doctor")):
        claimed = [seat for seat, act in said if act.kind == kind and seat in others and seat not in found]
        if left[role] and claimed:
            found[min(claimed, key=lambda seat: score[seat])] = role
    return {seat: found.get(seat, VILLAGER) for seat in others}


def accuracy(games: Sequence[Sequence[Trajectory]]) -> dict[str, Estimate]:
    """How often predictions were right, by the side of who predicts and the true role of whom it is about.

    Args:
        games: The trajectories of each game; seats that predicted nothing do not count.

    Returns:
        ``predict/wolves/Seer``, ``predict/village/Werewolf``, ..., and ``overall`` of each side; with Wilson intervals,
        which take predictions for independent. What a player knows for certain counts too.

    Raises:
        ValueError: A record of a game is damaged.
    """
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for seats in games:
        roles = [ROLES.index(player["role"]) for player in replay(seats)["players"]]
        for trajectory in seats:
            own = roles[int(str(trajectory.info["agent"]).rpartition("_")[2])]
            for about, role in _predictions(trajectory.info):
                for name in (ROLES[roles[about]], "overall"):
                    key = f"predict/{'wolves' if own == WOLF else 'village'}/{name}"
                    total[key] += 1
                    right[key] += role == roles[about]
    return {key: wilson(right[key], total[key]) for key in sorted(total)}


def _predictions(info: Mapping[str, Any]) -> list[tuple[int, int]]:
    found = ((_KEY.fullmatch(name), value) for name, value in info.items())
    return [(int(match[2]), int(value)) for match, value in found if match]
