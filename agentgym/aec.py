"""Games of PettingZoo's AEC kind in text: what a seat is told, and how its answer becomes a move.

The text form of a game: ``observe(agent)`` is a string, ``step`` takes one, ``infos[agent]`` may hold ``instructions``,
``admissible_commands`` (empty or absent: any text will do) and ``invalid``, what was wrong with the last answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random

from agentgym.errors import ConfigError, missing, unknown
from agentgym.spaces import UnicodeText

try:
    import pettingzoo
    from pettingzoo.utils.env import AECEnv
except ModuleNotFoundError as problem:
    raise missing("pettingzoo", "marl") from problem


@dataclass(frozen=True)
class Words:
    """How a game is told.

    Attributes:
        instructions: Rules, and how to answer.
        describe: What an agent sees, as text.
        commands: The agent's legal moves: the text of each, and what the game gets for it. Empty where any text will
            do.
    """

    instructions: str
    describe: Callable[[Any, str], str]
    commands: Callable[[Any, str], Mapping[str, Any]]


class TextAEC(AECEnv):
    """A game in text. An answer without a legal move is refused and its seat asked again; then chance moves for it."""

    metadata = {"render_modes": ["ansi"], "name": "text_aec", "is_parallelizable": False}  # noqa: RUF012

    def __init__(self, game: Any, words: Words, limit: int = 3):
        """Tell a game.

        Args:
            game: An AEC environment.
            words: How it is told.
            limit: Refused answers in a row after which a random legal move is made.

        Raises:
            ConfigError: If ``limit`` is not positive.
        """
        if limit < 1:
            raise ConfigError(f"limit is {limit}: it must be at least 1")
        super().__init__()
        self.game, self.words, self.limit = game, words, limit
        self.instructions = words.instructions
        self.metadata = {**type(self).metadata, "name": str(game)}
        self.possible_agents = list(game.possible_agents)
        self.render_mode = "ansi"
        self._spaces = {agent: UnicodeText() for agent in self.possible_agents}
        self._actions = {agent: UnicodeText() for agent in self.possible_agents}
        self._rng, _ = np_random()
        self._counts = {"answers": 0, "illegal": 0, "random_moves": 0}

    def observation_space(self, agent: str) -> UnicodeText:
        """Any text."""
        return self._spaces[agent]

    def action_space(self, agent: str) -> UnicodeText:
        """Any text."""
        return self._actions[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start a game; ``seed`` also draws the moves of chance."""
        self.game.reset(seed=seed, options=options)
        if seed is not None:
            self._rng, _ = np_random(seed)
        self._counts = dict.fromkeys(self._counts, 0)
        self._cumulative_rewards = dict.fromkeys(self.game.agents, 0.0)
        self._refused, self._invalid = 0, ""
        self._take_over(dict.fromkeys(self.game.agents, 0.0))

    def step(self, action: str | None) -> None:
        """Make the move that the text names; None for an agent whose game is over."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            if action is not None:
                raise ValueError("when an agent is dead, the only valid action is None")
            self.game.step(None)
            self._take_over(dict.fromkeys(self.game.agents, 0.0))
            return
        self._cumulative_rewards[agent] = 0.0
        move = self._read(agent, action if isinstance(action, str) else "")
        if self._refused:
            self._take_over(dict.fromkeys(self.game.agents, 0.0))
            return
        self.game.step(move)
        self._take_over({a: float(r) for a, r in self.game.rewards.items()})
        if self._invalid and agent in self.infos:
            self.infos[agent]["invalid"] = self._invalid

    def _read(self, agent: str, text: str) -> Any:
        """The move; `_refused` is 0 where there is one."""
        self._counts["answers"] += 1
        commands = self.words.commands(self.game, agent)
        self._invalid, self._refused, refused = "", 0, self._refused
        if not commands:
            return text
        found = find_command(text, commands)
        if found is not None:
            return commands[found]
        self._counts["illegal"] += 1
        self._invalid = f"no legal move in the answer; legal are: {', '.join(commands)}"
        if refused + 1 < self.limit:
            self._refused = refused + 1
            return None
        self._counts["random_moves"] += 1
        return list(commands.values())[int(self._rng.integers(len(commands)))]

    def _take_over(self, rewards: dict[str, float]) -> None:
        """Show the state of the game."""
        game = self.game
        self.agents, self.agent_selection = list(game.agents), game.agent_selection
        self.terminations = {a: bool(game.terminations[a]) for a in self.agents}
        self.truncations = {a: bool(game.truncations[a]) for a in self.agents}
        self.rewards = {a: rewards.get(a, 0.0) for a in self.agents}
        self._cumulative_rewards = {a: self._cumulative_rewards[a] + self.rewards[a] for a in self.agents}
        self.infos = {a: {**game.infos[a], "instructions": self.instructions} for a in self.agents}
        agent = self.agent_selection
        if agent in self.agents and not (self.terminations[agent] or self.truncations[agent]):
            self.infos[agent]["admissible_commands"] = list(self.words.commands(game, agent))
            if self._refused:
                self.infos[agent]["invalid"] = self._invalid

    def observe(self, agent: str) -> str:
        """What an agent sees, and what was wrong with its last answer."""
        told = self.words.describe(self.game, agent)
        return (
            f"Invalid answer: {self._invalid}.\n\n{told}" if self._refused and agent == self.agent_selection else told
        )

    def metrics(self) -> dict[str, float]:
        """Counts of this game: answers, illegal ones, and moves made by chance."""
        return {name: float(count) for name, count in self._counts.items()}

    def render(self) -> str:
        """What the agent to move sees."""
        return self.observe(self.agent_selection)

    def close(self) -> None:
        """Close the game."""
        self.game.close()


def find_command(text: str, commands: Mapping[str, Any]) -> str | None:
    """The command that is named last in a text, upper or lower case."""
    names = "|".join(re.escape(name) for name in sorted(commands, key=len, reverse=True))
    found = re.findall(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE)
    return next((name for name in commands if name.lower() == found[-1].lower()), None) if found else None


def _mask(game: Any, agent: str) -> np.ndarray:
    return np.asarray(game.observe(agent)["action_mask"])


def _boards(game: Any, agent: str) -> tuple[np.ndarray, np.ndarray]:
    """The agent's own pieces and the other's, as the game gives them."""
    planes = np.asarray(game.observe(agent)["observation"])
    return planes[..., 0], planes[..., 1]


def _drawn(mine: np.ndarray, other: np.ndarray, first: bool, empty: Callable[[int, int], str]) -> str:
    own, theirs = ("X", "O") if first else ("O", "X")
    rows, columns = mine.shape
    cells = [
        [own if mine[r, c] else theirs if other[r, c] else empty(r, c) for c in range(columns)] for r in range(rows)
    ]
    return "\n".join(" ".join(row) for row in cells)


def _is_first(game: Any, agent: str) -> bool:
    return bool(game.possible_agents[0] == agent)


def _tictactoe(game: Any, agent: str) -> str:
    mine, other = (board.T for board in _boards(game, agent))  # the game counts down its columns
    board = _drawn(mine, other, _is_first(game, agent), lambda r, c: str(3 * r + c + 1))
    return f"{board}\nYou are {'X' if _is_first(game, agent) else 'O'}."


def _tictactoe_commands(game: Any, agent: str) -> dict[str, int]:
    mask = _mask(game, agent)
    cells = ((cell, 3 * (cell % 3) + cell // 3) for cell in range(9))
    return {str(cell + 1): action for cell, action in cells if mask[action]}


def _connect_four(game: Any, agent: str) -> str:
    board = _drawn(*_boards(game, agent), _is_first(game, agent), lambda r, c: ".")
    return f"1 2 3 4 5 6 7\n{board}\nYou are {'X' if _is_first(game, agent) else 'O'}."


def _connect_four_commands(game: Any, agent: str) -> dict[str, int]:
    return {str(column + 1): column for column in np.flatnonzero(_mask(game, agent)).tolist()}


_MOVES = ("rock", "paper", "scissors")


def _rps(game: Any, agent: str) -> str:
    seen = int(game.observe(agent))
    return f"The other player's last move: {_MOVES[seen] if seen < len(_MOVES) else 'none yet'}."


CLASSIC: dict[str, Words] = {
    "tictactoe_v3": Words(
        "You play tic-tac-toe. Three of your marks in a row, column or diagonal win. "
        "Answer with the number of a free cell.",
        _tictactoe,
        _tictactoe_commands,
    ),
    "connect_four_v3": Words(
        "You play connect four. Four of your pieces in a line win. "
        "Answer with the number of a column; your piece falls to its lowest free row.",
        _connect_four,
        _connect_four_commands,
    ),
    "rps_v2": Words(
        "You play rock, paper, scissors over many rounds. Answer with rock, paper or scissors.",
        _rps,
        lambda game, agent: {move: action for action, move in enumerate(_MOVES)},
    ),
}


def make_classic(name: str, limit: int = 3, **kwargs: Any) -> TextAEC:
    """Make a game of ``pettingzoo.classic`` in text.

    Args:
        name: A key of `CLASSIC`.
        limit: See `TextAEC`.
        kwargs: Arguments of the game.

    Raises:
        ConfigError: If there is no such game.
        MissingDependency: If what it needs is not installed.
    """
    if name not in CLASSIC:
        raise unknown("game", name, CLASSIC)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        game = pettingzoo.make("aec", "classic/" + "-v".join(name.rsplit("_v", 1)), **kwargs)
    except ModuleNotFoundError as error:
        raise missing(str(error.name), "marl") from error
    return TextAEC(game, CLASSIC[name], limit)
