"""Werewolf for seven or four language models, after SLA and LSPO, as a PettingZoo AEC environment.

`agentgym.envs.werewolf_game` is the game, `agentgym.envs.werewolf_text` its words. Importing this module registers
``agentgym/Werewolf-v0`` with PettingZoo: ``pettingzoo.make("aec", "agentgym/Werewolf-v0", parity="gt")``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs import werewolf_text as words
from agentgym.envs.werewolf_game import CHANCE, PHASES, RUNNING, TALK, TRUNCATED, State
from agentgym.envs.werewolf_metrics import count
from agentgym.envs.werewolf_record import View, view
from agentgym.envs.werewolf_rules import ROLES, WOLF, Codebook, Rules
from gymnasium.utils import seeding

from agentgym.errors import ConfigError, missing, unknown
from agentgym.spaces import UnicodeText

try:
    import pettingzoo
    from pettingzoo.utils.env import AECEnv
    from pettingzoo.utils.wrappers import OrderEnforcingWrapper
except ModuleNotFoundError as error:
    raise missing("pettingzoo", "marl") from error

ID = "agentgym/Werewolf-v0"


def env(**kwargs: Any) -> AECEnv[str, Any, Any]:
    """A `raw_env` that refuses calls in the wrong order; the arguments are those of `raw_env`."""
    return OrderEnforcingWrapper(raw_env(**kwargs))


class raw_env(AECEnv):
    """The game, one decision a step.

    With ``text`` an observation is the record of what a seat knows and, where it is to move, what it is asked; an
    action is what the player writes (`agentgym.envs.werewolf_text.parse`). Otherwise the observation is
    ``{"observation": [width], "action_mask": [n + 1 + K]}`` and the action a number. Ballots and the actions of a night
    take effect together; the dead stay in ``agents``, are never selected, and get their reward when the game ends.

    What cannot be read in text is answered with what was wrong, and the seat asked again, ``parse_retries`` times; then
    chance decides among the legal actions, or nothing is said. An illegal number is replaced by chance at once.

    ``infos[agent]``: ``role``; for the seat to move also ``phase``, ``instructions``, ``admissible_commands`` (empty
    for a speech) and ``invalid`` if its answer was refused and why. Without ``text`` there is the ``text`` of the
    observation; with it the ``view`` that scripted players read, ``brief``, and ``record``: all that was decided and
    drawn so far, as numbers that `agentgym.envs.werewolf_game.State` plays again, and the speeches by round and seat
    (it holds secrets: a player may use what `State.tensor` makes of it for its own seat). At the end ``won``,
    ``winner``, ``metrics``, and the record as ``actions`` and ``speeches`` (JSON).
    """

    metadata = {"name": "werewolf_v0", "render_modes": ["ansi"], "is_parallelizable": False}  # noqa: RUF012

    def __init__(
        self,
        players: int = 7,
        parity: str = "geq",
        text: bool = True,
        rewards: str = "lspo",
        brief: bool = False,
        history: str = "all",
        parse_retries: int = 5,
        max_speech: int = 600,
        max_rounds: int = 10,
        abstain: bool = True,
        latents: Sequence[int] = (3, 2, 2, 2),
        codebook: Codebook | None = None,
        render_mode: str | None = None,
    ):
        """Check the arguments.

        Args:
            players: 7 or 4.
            parity: ``geq`` or ``gt``: the wolves win when they are as many as the others, or more.
            text: Play in words; otherwise in numbers.
            rewards: ``lspo``, ``sla`` or ``win`` (nothing but +-1).
            brief: Very short observations, and actions that are plain text: for tiny models.
            history: ``all``: the whole record every time; ``new``: what is new since the seat last acted.
            parse_retries: How often a seat is asked again after an answer that cannot be read.
            max_speech: Longest speech in characters; the rest is cut off.
            max_rounds: The game is truncated after so many rounds.
            abstain: Whether a vote may name nobody.
            latents: Latent strategies of Werewolf, Seer, Doctor, Villager, where ``text`` is False.
            codebook: What is heard of a latent strategy (`agentgym.envs.werewolf_rules`); only without ``text``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
        """
        if history not in ("all", "new"):
            raise unknown("history", str(history), ["all", "new"])
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        if parse_retries < 0 or max_speech < 1:
            raise ConfigError(f"parse_retries {parse_retries} and max_speech {max_speech} must be at least 0 and 1")
        if text:
            latents, codebook = (1,) * len(ROLES), None
        self.rules = Rules(players, parity, rewards, latents, codebook, abstain, max_rounds)
        self.text, self.brief, self.history, self.render_mode = bool(text), bool(brief), history, render_mode
        self.parse_retries, self.max_speech = parse_retries, max_speech
        self.instructions = words.instructions(self.rules, self.brief)
        self.possible_agents = [words.name(seat) for seat in range(players)]
        self.agents: list[str] = []
        self._seat_of = {agent: seat for seat, agent in enumerate(self.possible_agents)}
        self._rng, _ = seeding.np_random()
        self.observation_spaces = {agent: self._observation_space() for agent in self.possible_agents}
        self.action_spaces = {agent: self._action_space() for agent in self.possible_agents}

    def _observation_space(self) -> gym.Space[Any]:
        if self.text:
            return UnicodeText(2**20)
        shape = (self.rules.width,)
        return gym.spaces.Dict(
            observation=gym.spaces.Box(-1.0, 1.0, shape, np.float32),
            action_mask=gym.spaces.Box(0, 1, (self.rules.actions,), np.int8),
        )

    def _action_space(self) -> gym.Space[Any]:
        return UnicodeText() if self.text else gym.spaces.Discrete(self.rules.actions)

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """The space of a seat's observations, the same for all."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """The space of a seat's actions, the same for all."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Deal a game.

        Args:
            seed: Draws deal, ties and what replaces illegal actions. None goes on with the generator there is.
            options: ``roles``: the role of each seat by name or number, instead of a deal.

        Raises:
            ConfigError: Roles that cannot be dealt.
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        roles = (options or {}).get("roles")
        self.game = State(self.rules)
        deal = self.game.sample_chance(self._rng)
        self.actions: list[int] = []
        self._play(deal if roles is None else self._deal(roles))
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._skip_agent_selection = None
        self.speeches: dict[tuple[int, int], str] = {}
        self._told = dict.fromkeys(self.agents, 0)
        self._tries, self._error = 0, ""
        self._counts = {"decisions": 0.0, "parse/answers": 0.0, "parse/failures": 0.0, "parse/fallbacks": 0.0}
        self.fallbacks = dict.fromkeys(self.agents, 0)
        self._turn()

    def _deal(self, roles: Sequence[str | int]) -> int:
        try:
            wanted = tuple(ROLES.index(role) if isinstance(role, str) else int(role) for role in roles)
            return [dealt for dealt, _ in self.rules.deals].index(wanted)
        except ValueError as error:
            raise ConfigError(f"roles: {list(roles)} is no deal of {self.rules.n} players; names: {ROLES}") from error

    def step(self, action: str | int | None) -> None:
        """The decision of ``agent_selection``; None after the end, as PettingZoo asks."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        game = self.game
        self._told[agent] = 1 + len(self._seen.events)
        self._refused = ""
        decided = self._read(agent, action)
        if decided is not None:
            self._counts["decisions"] += 1
            self._tries, self._error = 0, ""
            before = game.totals
            self._play(decided)
            while game.player() == CHANCE:
                self._play(game.sample_chance(self._rng))
            if before is not game.totals:
                self.rewards = {
                    name: now - then for name, now, then in zip(self.possible_agents, game.totals, before, strict=True)
                }
                self._accumulate_rewards()
            self._turn()
        if self._refused:
            self.infos[agent]["invalid"] = self._refused

    def _play(self, action: int) -> None:
        self.actions.append(action)
        self.game.play(action)

    def _read(self, agent: str, action: Any) -> int | None:
        """The action as a number, or None if the seat is asked again; a speech is kept."""
        game, legal = self.game, self.game.legal()
        self._counts["parse/answers"] += 1
        if not self.text:
            if isinstance(action, int | np.integer) and int(action) in legal:
                return int(action)
            self._counts["parse/failures"] += 1
            self._refused = f"{action!r} is no legal action"
            return self._fallback(agent, legal)
        commands = self.infos[agent]["admissible_commands"]
        parsed = words.parse(action, commands, self.brief) if isinstance(action, str) else words.Parsed(None, "no text")
        if parsed.action is None:
            self._counts["parse/failures"] += 1
            self._tries += 1
            self._refused = str(parsed.error)
            self._error = f"Your answer could not be read: {parsed.error}."
            if self._tries <= self.parse_retries:
                return None
            decided = self._fallback(agent, legal)
            parsed = words.Parsed("")
        else:
            decided = legal[commands.index(parsed.action)] if commands else legal[0]
        if game.phase == TALK:
            self.speeches[game.round, self._seat_of[agent]] = words.clean(parsed.action or "", self.max_speech)
        return decided

    def _fallback(self, agent: str, legal: list[int]) -> int:
        self._counts["parse/fallbacks"] += 1
        self.fallbacks[agent] += 1
        return legal[int(self._rng.integers(len(legal)))]

    def _turn(self) -> None:
        """Select who is to move and say what it may do; or end the game."""
        game = self.game
        self.infos: dict[str, dict[str, Any]] = {
            agent: {"role": ROLES[game.roles[seat]]} for seat, agent in enumerate(self.possible_agents)
        }
        if game.winner == RUNNING:
            seat = game.player()
            self.agent_selection = agent = self.possible_agents[seat]
            self._seen = seen = self.view(agent)
            self.infos[agent] |= {
                "phase": PHASES[game.phase],
                "instructions": self.instructions,
                "admissible_commands": list(seen.commands),
            }
            if not self.text:
                self.infos[agent]["text"] = self._told_to(seen)
            else:
                self.infos[agent] |= {"view": seen, "brief": self.brief, "record": (self.actions, self.speeches)}
            return
        over = game.winner == TRUNCATED
        self.truncations = dict.fromkeys(self.agents, over)
        self.terminations = dict.fromkeys(self.agents, not over)
        said = [[number, seat, text] for (number, seat), text in self.speeches.items()]
        ended = {
            "winner": _WINNERS[game.winner],
            "metrics": self.metrics(),
            "actions": " ".join(map(str, self.actions)),
            "speeches": json.dumps(said, ensure_ascii=False),
        }
        for seat, agent in enumerate(self.possible_agents):
            won = not over and (game.winner == 0) == (game.roles[seat] == WOLF)
            self.infos[agent] |= {"won": won, **ended}
        self.agent_selection = self.agents[0]

    def view(self, agent: str) -> View:
        """What a seat knows, as data: for scripted players."""
        return view(self.game, self._seat_of[agent], self.speeches)

    def observe(self, agent: str) -> Any:
        """What a seat knows: text, or vector and mask."""
        seat = self._seat_of[agent]
        if self.text:
            to_move = agent == self.agent_selection and self.game.winner == RUNNING
            return self._told_to(self._seen if to_move else self.view(agent))
        return {"observation": self.game.tensor(seat), "action_mask": self.game.mask(seat)}

    def _told_to(self, seen: View) -> str:
        lines = words.record(seen, self.brief)
        if self.text and self.history == "new":
            lines = lines[self._told[words.name(seen.seat)] :]
        if self.game.player() == seen.seat:
            lines = [*([self._error] if self._error else []), *lines, words.ask(seen, self.brief)]
        return "\n".join(lines)

    def metrics(self) -> dict[str, float]:
        """What was counted in this game (`agentgym.envs.werewolf_metrics`, whose `shares` makes rates of many)."""
        return {**count(self.game), **self._counts}

    def render(self) -> str | None:
        """The game as all know it who know everything, if ``render_mode`` is ``ansi``."""
        if self.render_mode != "ansi":
            return None
        seats = (view(self.game, seat, self.speeches) for seat in range(self.rules.n))
        return "\n\n".join("\n".join(words.record(seen, self.brief)) for seen in seats)

    def close(self) -> None:
        """Nothing is held."""


_WINNERS = ("wolves", "village", "nobody")

if ID not in pettingzoo.aec_registry:
    pettingzoo.register("aec", ID, entry_point="agentgym.envs.werewolf:env")
