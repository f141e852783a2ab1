"""One seat of Werewolf as a Gymnasium environment; scripted players or models of yours have the other seats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs import werewolf_text as words
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_game import TALK
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_rules import CASTS, ROLES
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, unknown
from agentgym.spaces import UnicodeText

SPLITS = ("train", "dev", "test")
"""What the reset option ``split`` may be: their seeds are different games, from the same distribution."""

Opponent = str | Callable[[str, dict[str, Any]], str]
"""A key of `PLAYERS`, or observation and info of its seat -> what it writes."""

_MOST_DEALS = 1000


class WerewolfSeatEnv(gym.Env[str, str]):
    """A seat of `agentgym.envs.werewolf.raw_env` in text; a step is a decision of this seat.

    The reward of a step is all that the seat gets until it is to move again. When the seat dies the others play on, and
    the last reward holds the outcome: ``terminated`` when the game is won or lost, ``truncated`` at the round cap. If
    the seat would die before its first decision, the others are dealt again.

    ``info`` holds ``role``, ``seat``, ``phase``, ``admissible_commands`` (empty for a speech, and after the end),
    ``score`` (1 for a game won, else 0), ``max_score`` 1, ``fallbacks`` (decisions of this seat that were left to
    chance, because what it wrote could not be read), ``success`` (won, and without any of these), at the end
    ``winner`` and ``metrics``, and with ``expert`` the ``expert_action``: what the scripted player would do who knows
    the same.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        seat: int | None = None,
        role: str | None = None,
        opponents: Opponent = "scripted",
        expert: bool = False,
        advisor: str = "scripted",
        render_mode: str | None = None,
        **game: Any,
    ):
        """Check the arguments.

        Args:
            seat: Which seat to play; None draws it.
            role: Which role to play, by name; None leaves it to the deal.
            opponents: Who plays the others: a key of `agentgym.envs.werewolf_players.PLAYERS`, or a function.
            expert: Put ``expert_action`` into ``info``.
            advisor: Who gives it: a key of `PLAYERS`, or ``any``, which draws one for each game.
            render_mode: None or ``ansi``.
            **game: Arguments of `agentgym.envs.werewolf.raw_env`, other than ``text`` and those of abstract play.

        Raises:
            ConfigError: A wrong argument.
        """
        if abstract := sorted({"text", "latents", "codebook"} & game.keys()):
            raise ConfigError(f"{abstract[0]} is of no use here: a seat is played in text")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        if isinstance(opponents, str) and opponents not in PLAYERS:
            raise unknown("opponents", opponents, PLAYERS)
        if advisor not in (*PLAYERS, "any"):
            raise unknown("advisor", advisor, [*PLAYERS, "any"])
        self._table = raw_env(**game)
        self.players = self._table.rules.n
        self.seat, self.role = self._seat(seat), self._role(role)
        self.opponents, self.expert, self.render_mode, self.advisor = opponents, expert, render_mode, advisor
        self.instructions = self._table.instructions
        self.max_steps = 3 * self._table.rules.max_rounds * (self._table.parse_retries + 1)
        self.observation_space = UnicodeText(2**20)
        self.action_space = UnicodeText()
        self._playing, self._text = False, ""

    def _seat(self, seat: Any) -> int | None:
        if seat is not None and (isinstance(seat, bool) or seat not in range(self.players)):
            raise ConfigError(f"seat must be 0 to {self.players - 1} or None, not {seat!r}")
        return seat

    def _role(self, role: Any) -> str | None:
        dealt = [ROLES[number] for number in sorted(set(CASTS[self.players]))]
        if role is not None and role not in dealt:
            raise unknown("role", str(role), dealt)
        return role

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game and play to the first decision of the seat.

        Args:
            seed: Draws seat, deal, and what the other players do.
            options: ``seat``, ``role``, ``expert`` for this episode instead of the constructor's; ``split`` (see
                `SPLITS`).

        Returns:
            What the seat reads, and ``info``.

        Raises:
            ConfigError: A wrong option.
            EnvError: If 1000 deals held no game in which the seat decides.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        seat, role = self._seat(options.pop("seat", self.seat)), self._role(options.pop("role", self.role))
        self._hints = bool(options.pop("expert", self.expert))
        if (split := options.pop("split", "train")) not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        if options:
            raise unknown("reset option", next(iter(options)), ["seat", "role", "expert", "split"])
        rng = np.random.default_rng([SPLITS.index(split), int(self.np_random.integers(2**63))])
        place, deal, game_seed = self._drawn(rng, seat, role)
        role = ROLES[deal[place]]
        for _ in range(_MOST_DEALS):
            _, deal, game_seed = self._drawn(rng, place, role)
            self._start(place, deal, game_seed)
            if self._my_turn():
                break
        else:
            raise EnvError(f"none of {_MOST_DEALS} deals was a game in which this seat decides")
        self._playing = True
        self._text = self._table.observe(self._me)
        return self._text, self._info()

    def _drawn(self, rng: np.random.Generator, seat: int | None, role: str | None) -> tuple[int, list[int], int]:
        place = int(rng.integers(self.players)) if seat is None else seat
        deals = [roles for roles, _ in self._table.rules.deals if role is None or ROLES[roles[place]] == role]
        return place, list(deals[int(rng.integers(len(deals)))]), int(rng.integers(2**63))

    def _start(self, place: int, deal: list[int], game_seed: int) -> None:
        self._table.reset(seed=game_seed, options={"roles": deal})
        self._me = self._table.possible_agents[place]
        self._rngs = [np.random.default_rng([game_seed, seat]) for seat in range(self.players)]
        self._expert_seed = game_seed, self.players
        self._others()

    def _over(self) -> bool:
        return self._table.terminations[self._me] or self._table.truncations[self._me]

    def _my_turn(self) -> bool:
        return not self._over() and self._table.agent_selection == self._me

    def _others(self) -> float:
        """Let the others play until the seat is to move or the game is over; what the seat got meanwhile."""
        table, reward = self._table, 0.0
        while not self._over() and not self._my_turn():
            agent = table.agent_selection
            if isinstance(self.opponents, str):
                seen = table.view(agent)
                said = PLAYERS[self.opponents](seen, self._rngs[seen.seat])
                table.step(said if seen.commands or table.brief else words.write_speech(said))
            else:
                table.step(self.opponents(table.observe(agent), table.infos[agent]))
            reward += table.rewards[self._me]
        return reward

    def _advice(self) -> str:
        """What the expert would write: asked again, the same."""
        game = self._table.game
        seen = self._table.view(self._me)
        rng = np.random.default_rng([*self._expert_seed, game.round, game.phase])
        advisor = self.advisor if self.advisor != "any" else list(PLAYERS)[self._expert_seed[0] % len(PLAYERS)]
        said = PLAYERS[advisor](seen, rng)
        return said if game.phase != TALK or self._table.brief else words.write_speech(said)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Write a decision; what cannot be read is answered with what was wrong, and at last replaced by chance.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of a game.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no game is running")
        self._table.step(action)
        reward = self._table.rewards[self._me] + self._others()
        self._playing = not self._over()
        info = self._info()
        self._text = self._table.observe(self._me)
        if not self._playing:
            self._text += f"\nThe game is over. Winner: {info['winner']}."
        return self._text, float(reward), self._table.terminations[self._me], self._table.truncations[self._me], info

    def _info(self) -> dict[str, Any]:
        table = self._table
        known = table.infos[self._me]
        fallbacks, won = table.fallbacks[self._me], bool(known.get("won"))
        info: dict[str, Any] = {
            "role": known["role"],
            "seat": self._me,
            "phase": known.get("phase", "over"),
            "admissible_commands": known.get("admissible_commands", []),
            "fallbacks": fallbacks,
            "score": float(won),
            "max_score": 1.0,
            "success": won and not fallbacks,
        }
        if not self._playing:
            info |= {"winner": known["winner"], "metrics": known["metrics"]}
        if self._hints:
            info["expert_action"] = self._advice() if self._playing else None
        return info

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """End the game. Safe to call again."""
        self._playing = False
