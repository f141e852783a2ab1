"""ALFWorld (Shridhar et al., 2021) behind Gymnasium: household tasks, in the text world of textworld's PDDL engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from agentgym.envs import alfworld_games
from agentgym.envs.alfworld_engine import Engine, world
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, unknown
from agentgym.spaces import UnicodeText

_INSTRUCTIONS = (
    "You are in a house and do what the task says. Furniture and things have numbers: 'drawer 2', 'apple 1'. You see "
    "what is on or in a piece of furniture when you are there, and in closed ones when you have opened them; you can "
    "carry one thing. Commands: 'go to X', 'open X', 'close X', 'take A from X', 'move A to X', 'examine A', "
    "'use A' (switches a lamp on), 'heat A with X' (a microwave), 'cool A with X' (a fridge), 'clean A with X' (a "
    "sink basin), 'slice A with B' (a knife), 'look', 'inventory', 'help'. To look at a thing under a lamp, carry it "
    "to the lamp and use the lamp. 'Nothing happens.' answers what cannot be done."
)

_NO_EFFECT = ("look", "inventory", "examine ", "help")


class ALFWorldEnv(gym.Env[str, str]):
    """A game of ALFWorld; observations and actions are text.

    The reward is 1 when the goal is reached, else 0. ``terminated`` then, ``truncated`` after ``max_steps`` actions.
    ``info`` holds ``admissible_commands`` (sorted), ``score``, ``max_score``, ``success``, ``task``, ``task_type``,
    ``game`` (split, name and trial), and with ``expert`` the ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        split: str = "train",
        task_types: Iterable[int | str] | int | str | None = None,
        max_steps: int = 50,
        expert: bool = False,
        data: str | None = None,
        render_mode: str | None = None,
    ):
        """Check the arguments and find the games.

        Args:
            split: ``train``, ``dev`` (ALFWorld's ``valid_seen``), ``test`` (``valid_unseen``), or ALFWorld's names.
            task_types: Numbers or names of `agentgym.envs.alfworld_games.TASK_TYPES`; all if None.
            max_steps: Actions until ``truncated``.
            expert: Put ``expert_action`` into ``info``.
            data: Folder or packed file with the games; ``$ALFWORLD_DATA`` or what was fetched if None.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument, or broken data.
            MissingDependency: The packages or the games are not installed.
        """
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.split, self.task_types, self.data = split, task_types, data
        self.max_steps, self.expert, self.render_mode = max_steps, expert, render_mode
        self.instructions = _INSTRUCTIONS
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._games(split, task_types)
        self._engine: Engine | None = Engine()
        self._playing = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game.

        Args:
            seed: Chooses the game: number ``seed % n`` of the ``n`` there are. Drawn from ``np_random`` if None.
            options: ``split``, ``task_types``, ``expert`` for this episode instead of the constructor's.

        Returns:
            What the agent sees and its task, and ``info``.

        Raises:
            ConfigError: A wrong option, or broken data.
            EnvError: The translator failed.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        games = self._games(options.pop("split", self.split), options.pop("task_types", self.task_types))
        expert = bool(options.pop("expert", self.expert))
        if options:
            raise unknown("reset option", next(iter(options)), ["split", "task_types", "expert"])
        number = int(self.np_random.integers(len(games))) if seed is None else int(seed) % len(games)
        self._playing = False
        self._game = game = games[number]
        if self._engine is None:
            self._engine = Engine()
        try:
            self._engine.start(world(game.domain, game.grammar, game.problem))
        except (ConfigError, EnvError) as error:
            raise type(error)(f"ALFWorld {game.id}: {error}") from error
        self._steps, self._success, self._playing = 0, False, True
        self._plan: list[str] | None = None
        self._place = "look"
        if expert:
            self._plan = list(game.walkthrough) or self._engine.plan()
        self._text = self._engine.intro(game.goal)
        self._commands = self._engine.commands
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Do one command; one that is not among the admissible ones costs a step and changes nothing.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
        """
        if not self._playing or self._engine is None:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._steps += 1
        command = action.strip()
        said = self._engine.do(command)
        self._text = "Nothing happens." if said is None else said
        if said is not None:
            self._commands = self._engine.commands
            self._success = self._engine.won
            self._follow(command)
        truncated = not self._success and self._steps >= self.max_steps
        self._playing = not (self._success or truncated)
        return self._text, float(self._success), self._success, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Free the engine. Safe to call again."""
        engine, self._engine, self._playing = self._engine, None, False
        if engine is not None:
            engine.close()

    def _games(self, split: Any, kinds: Any) -> list[alfworld_games.Game]:
        official = alfworld_games.official_split(split)
        return alfworld_games.games(self.data, official, alfworld_games.task_types(kinds))

    def _follow(self, command: str) -> None:
        """Bring the plan up to date with what was done."""
        if self._plan is None or self._success:
            return
        if self._plan[:1] == [command]:
            self._plan = self._plan[1:]
        elif not command.startswith(_NO_EFFECT):
            self._plan = self._repaired(self._plan, command)
        if command.startswith("go to "):
            self._place = command

    def _repaired(self, plan: list[str], done: str) -> list[str]:
        """A plan that reaches the goal from here: the old one in part, or after taking back what was done.

        Args:
            plan: What would have reached it before.
            done: The command that was not in the plan; it may be due once more at the end.
        """
        assert self._engine is not None
        whole = list(self._game.walkthrough)
        again = [*plan, self._place, done]
        useful = [command for command in self._commands if not command.startswith(_NO_EFFECT)]
        found = [self._engine.leads(tail, lenient=True) for tail in (plan, whole)]
        found += [self._engine.leads([command, *again]) for command in useful if not any(found)]
        if not any(found):
            found = [self._engine.leads([command, *whole], lenient=True) for command in useful]
        return min(filter(None, found), key=len, default=[])

    def _info(self) -> dict[str, Any]:
        info = {
            "admissible_commands": list(self._commands),
            "score": float(self._success),
            "max_score": 1.0,
            "success": self._success,
            "task": self._game.goal,
            "task_type": self._game.task_type,
            "game": self._game.id,
        }
        if self._plan is not None:
            info["expert_action"] = self._plan[0] if self._plan and not self._success else None
        return info
