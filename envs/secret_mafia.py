"""Secret Mafia of TextArena as a PettingZoo AEC environment, in the text form of `agentgym.aec`.

TextArena's module draws from Python's global generator. Here every game runs a copy of the module whose name ``random``
is a generator of the game's own, so that games beside each other do not disturb one another, nor anybody else.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from typing import Any

from agentgym.aec import AECEnv, TextAEC, Words
from agentgym.errors import ConfigError, missing
from agentgym.spaces import UnicodeText

_MODULE = "textarena.envs.SecretMafia.env"
_LONGEST = 1000
"""Characters of a speech, as in TextArena."""

INSTRUCTIONS = (
    "You play Secret Mafia. In the discussion say what you want the others to hear. "
    "When you choose a player, answer with the number of the player, such as [2]."
)


class SecretMafia(AECEnv):
    """The game as TextArena has it: a seat observes what was said to it since its last action.

    The dead stay in ``agents``, are never selected, and get the reward of their team at the end: 1 or -1.
    """

    metadata = {"render_modes": [], "name": "secret_mafia_v0", "is_parallelizable": False}  # noqa: RUF012

    def __init__(self, players: int = 6, discussion_rounds: int = 3, mafia_ratio: float = 0.25):
        """Prepare a game.

        Args:
            players: 6 to 15.
            discussion_rounds: How often everybody speaks before a vote.
            mafia_ratio: Share of the mafia.

        Raises:
            ConfigError: If the number of players is not possible.
            MissingDependency: If TextArena is not installed.
        """
        self._module = _own_module()
        if not 6 <= players <= 15:
            raise ConfigError(f"players is {players}: Secret Mafia takes 6 to 15")
        super().__init__()
        self.game = self._module.SecretMafiaEnv(mafia_ratio, discussion_rounds)
        self.possible_agents = [f"player_{i}" for i in range(players)]
        self._space = {agent: UnicodeText() for agent in self.possible_agents}
        self._actions = {agent: UnicodeText() for agent in self.possible_agents}

    def observation_space(self, agent: str) -> UnicodeText:
        """Any text."""
        return self._space[agent]

    def action_space(self, agent: str) -> UnicodeText:
        """Any text."""
        return self._actions[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Deal the roles."""
        if seed is not None:
            self._module.random = random.Random(seed)
        self.game.reset(len(self.possible_agents))  # given the seed, it would seed the global generator
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._skip_agent_selection = None
        roles = self.game.player_roles
        self.infos = {agent: {"role": roles[i]} for i, agent in enumerate(self.agents)}
        self._read = dict.fromkeys(self.agents, 0)
        self.agent_selection = self.agents[self.game.state.current_player_id]

    def step(self, action: str | None) -> None:
        """Speak or choose."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self._read[agent] = len(self._heard(agent))
        done, _ = self.game.step((action or "")[:_LONGEST])
        if done:
            self.terminations = dict.fromkeys(self.agents, True)
            rewards = self.game.state.rewards or {}
            self.rewards = {a: float(rewards.get(i, 0)) for i, a in enumerate(self.possible_agents)}
            for name, reward in self.rewards.items():
                self.infos[name]["won"] = reward > 0
            self._accumulate_rewards()
            self.agent_selection = self.agents[0]
        else:
            self.agent_selection = self.agents[self.game.state.current_player_id]

    def _heard(self, agent: str) -> list[Any]:
        return list(self.game.state.observations[self.possible_agents.index(agent)])

    def observe(self, agent: str) -> str:
        """What was said to a seat since its last action."""
        new = self._heard(agent)[self._read[agent] :]
        return "\n".join(f"[{'GAME' if who < 0 else f'Player {who}'}] {text}".rstrip() for who, text, _ in new)

    def targets(self) -> list[int]:
        """The players among whom the seat to move has to choose; nobody in a discussion."""
        phase, state = self.game.phase.value, self.game.state
        me, alive = state.current_player_id, state.game_state["alive_players"]
        if phase == "Day-Discussion":
            return []
        if phase == "Night-Mafia":
            return [p for p in alive if self.game.player_roles[p] != "Mafia"]
        return [p for p in alive if phase == "Day-Voting" or p != me]

    def close(self) -> None:
        """Nothing is held."""


def _own_module() -> Any:
    """A copy of TextArena's module with a generator of its own."""
    try:
        spec: Any = importlib.util.find_spec(_MODULE)
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "games") from error
    module.random = random.Random()
    return module


def _commands(game: SecretMafia, agent: str) -> Mapping[str, str]:
    return {str(p): f"[{p}]" for p in game.targets()} if agent == game.agent_selection else {}


def make_secret_mafia(limit: int = 3, **kwargs: Any) -> TextAEC:
    """Make the game with answers checked before it sees them (it puts to death who answers wrongly twice).

    Args:
        limit: See `agentgym.aec.TextAEC`.
        kwargs: Arguments of `SecretMafia`.
    """
    return TextAEC(
        SecretMafia(**kwargs), Words(INSTRUCTIONS, lambda game, agent: game.observe(agent), _commands), limit
    )
