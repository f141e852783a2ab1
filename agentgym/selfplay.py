"""Games of many players: each seat has a policy of its own, and gets a trajectory of its own.

An AEC environment in text form (`agentgym.aec`) says who decides next; that seat's policy is shown what it may see and
answers; many games run beside each other. What breaks outside the policies, or a policy that breaks, ends the game: it
is played again with the same seeds in a fresh environment, and if that does not help it is dropped whole and counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentgym import seeding
from agentgym.actions import make_codec
from agentgym.attempts import PAUSE_S, all_of, attempt_within, next_done
from agentgym.context import make_context
from agentgym.dialogue import Dialogue
from agentgym.errors import ConfigError, ContextFull, EnvError
from agentgym.game_worker import Deal, GameWorker, Scene
from agentgym.policies.base import Policy
from agentgym.rollout import RolloutConfig, RolloutStats, Task, check_context, first_prompt_too_long
from agentgym.seats import Places, lockstep
from agentgym.types import Status, Trajectory, Turn

COUNTS = ("turns", "parse_errors", "refused", "fallbacks", "cut", "context_full")
"""What is counted in every game: turns written; answers that the codec could not read; answers that the environment
refused; moves made for a seat that gave none; turns cut at ``rollout.max_new_tokens``; seats whose context was full."""

Assign = Callable[[Task, Mapping[str, Mapping[str, Any]]], Mapping[str, str]]
"""From a task and every agent's ``info`` after the reset (its role) to the name of each agent's seat."""


@dataclass(frozen=True)
class Seat:
    """Who sits at a table.

    Attributes:
        policy: Who decides.
        trainable: Whether its trajectories are to be trained on.
        codec: How its text becomes an action; ``verbatim`` leaves that to the environment, which also says how to
            answer.
        context: What it sees: append, window:K.
    """

    policy: Policy
    trainable: bool = False
    codec: str = "verbatim"
    context: str = "append"


@dataclass
class Game:
    """A game that was played to its end.

    Attributes:
        id: Its group's name and its number in the group.
        group: Name of its group: games with the same deal.
        env_id: Name of the environment.
        env_seed: Seed of the deal.
        trajectories: What each agent saw and did. ``info`` holds ``agent``, ``seat``, ``trainable`` and ``game``.
        returns: What each agent received, also one that never decided.
        status: How it ended.
        error: What broke.
        attempts: How often it was begun.
        metrics: What the environment counted, and `COUNTS`.
    """

    id: str
    group: str
    env_id: str
    env_seed: int
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    returns: dict[str, float] = field(default_factory=dict)
    status: Status | None = None
    error: str | None = None
    attempts: int = 1
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def trainable(self) -> list[Trajectory]:
        """The trajectories to train on: of trainable seats that decided at all."""
        return [t for t in self.trajectories.values() if t.info["trainable"] and t.turns]


def game_metrics(games: Sequence[Game]) -> dict[str, float]:
    """Means over games for ``metrics.jsonl``: ``game/<what was counted>`` and ``return/<seat>``."""
    found: dict[str, list[float]] = {}
    for game in games:
        for name, value in game.metrics.items():
            found.setdefault(f"game/{name}", []).append(value)
        for agent, total in game.returns.items():
            found.setdefault(f"return/{game.trajectories[agent].info['seat']}", []).append(total)
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


class SelfPlay:
    """Plays games with a policy in every seat.

    Attributes:
        stats: Counts since the start; its groups and episodes are games.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        seats: Mapping[str, Seat],
        config: RolloutConfig,
        assign: Assign | None = None,
        options: dict[str, Any] | None = None,
        on_game: Callable[[Game], None] | None = None,
    ):
        """Prepare; nothing runs yet.

        Args:
            make_env: Makes an AEC environment in text form; it is called on a thread.
            seats: Seats by name: an agent's, or any name if ``assign`` says who sits where.
            config: How. ``max_turns`` counts the turns of a seat, ``concurrency`` games, ``episode_timeout`` is a
                game's; codec and context are the seats' own.
            assign: Who sits where, decided after the deal.
            options: Options of every ``env.reset``.
            on_game: Called with every game that ended, dropped ones too.

        Raises:
            ConfigError: For a seat that cannot play or cannot be trained.
        """
        if not seats:
            raise ConfigError("seats is empty: name a Seat for every agent")
        if config.codec != "auto" or config.context != "append":
            raise ConfigError(
                "rollout.codec and rollout.context do not count in self-play: set Seat.codec and .context"
            )
        for name, seat in seats.items():
            make_codec(seat.codec)
            make_context(seat.context, seat.policy.renderer.escape, config.max_turns)
            if seat.context == "workspace":
                raise ConfigError(f"seat {name}: context workspace is for research agents: use append or window:K")
            if seat.trainable and seat.policy.version < 0:
                raise ConfigError(f"seat {name} is trainable, but the {seat.policy.name} policy has no weights here")
            check_context(seat.policy, config)
        self.make_env, self.seats, self.config, self.assign = make_env, dict(seats), config, assign
        self.options, self.on_game = dict(options or {}), on_game
        self.policies = list({id(seat.policy): seat.policy for seat in seats.values()}.values())
        for policy in self.policies:
            self.options |= policy.env_options
        self.stats = RolloutStats()

    def collect(self, tasks: Sequence[Task]) -> list[Game]:
        """Play tasks to the end; see `stream`. Also works where an event loop runs already, as in a notebook."""
        return sorted(all_of(self.stream(tasks)), key=lambda game: game.id)

    async def stream(self, tasks: Sequence[Task]) -> AsyncIterator[Game]:
        """Play tasks, one game each, and yield each game when it is over.

        Raises:
            TooManyFailures: If more games failed than ``max_failure_rate`` allows.
            ConfigError: If an agent has no seat, or a first prompt does not fit.
        """
        pending, done = list(reversed(tasks)), asyncio.Queue[Game]()
        names = " and ".join(policy.name for policy in self.policies)
        with ExitStack() as stack:
            driven = stack.enter_context(lockstep(self.policies))
            # opened before the first of them plays, so that the engine knows how many there are
            places = [Places(driven) for _ in range(min(self.config.concurrency, len(tasks)))]
            for place in places:
                stack.callback(place.close)
            workers = [asyncio.create_task(self._work(place, pending, done)) for place in places]
            try:
                for _ in tasks:
                    game = await next_done(done, workers, names)
                    self.stats.episodes += 1
                    if self.on_game:
                        self.on_game(game)
                    failed = game.status is not None and game.status.failed
                    self.stats.count_group(failed, self.config.max_failure_rate, "games")
                    if not failed:
                        yield game
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, places: Places, pending: list[Task], done: asyncio.Queue[Game]) -> None:
        worker: GameWorker | None = None
        try:
            while pending:
                game, worker = await self._attempts(places, worker, pending.pop())
                await done.put(game)
        finally:
            places.close()
            if worker is not None:
                worker.seat.close()

    async def _attempts(self, places: Places, worker: GameWorker | None, task: Task) -> tuple[Game, GameWorker | None]:
        for attempt in range(1, self.config.retries + 2):
            worker = worker or GameWorker(self.make_env)
            table = _Table(self, places, worker, task, attempt)
            try:
                limit = self.config.episode_timeout
                status, message = await attempt_within(table.play(), limit, table.asked, "game")
            except BaseException:
                worker.seat.close()
                raise
            finally:
                places.clear()
            game = table.game
            if status is None:
                return game, worker
            worker.seat.close()
            worker = None
            self.stats.count(status, message)
            game.status, game.error = status, message
            for trajectory in game.trajectories.values():
                trajectory.status, trajectory.error = status, message
            if attempt <= self.config.retries:
                self.stats.retries += 1
                if status is Status.SANDBOX_ERROR:
                    await asyncio.sleep(PAUSE_S * attempt)
        return game, None


class _Table:
    """One attempt at one game."""

    def __init__(self, play: SelfPlay, places: Places, worker: GameWorker, task: Task, attempt: int):
        self.host, self.places, self.worker, self.task = play, places, worker, task
        name = f"{task.group}-{task.member:02d}"
        self.game = Game(name, task.group, "", task.env_seed, attempts=attempt)
        self.asked = "first"
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.dialogues: dict[str, Dialogue] = {}
        self.early: dict[str, float] = {}
        self.played_for: dict[str, str] = {}
        self.full: set[str] = set()

    async def play(self) -> None:
        """Play to the end."""
        config = self.host.config
        deal = await self.worker.deal(self.task.env_seed, self.host.options, config.step_timeout)
        self._seat_all(deal)
        scene = deal.scene
        self._take(scene)
        while scene.agent is not None:
            trajectory = self.game.trajectories[scene.agent]
            if len(trajectory.turns) >= config.max_turns:
                self.game.status = Status.TRUNCATED
                break
            turn, action = await self._decide(scene.agent, scene)
            started = time.perf_counter()
            scene = await self.worker.play(action, config.step_timeout)
            self._take(scene)
            if turn is not None:
                turn.env_s = time.perf_counter() - started
                if scene.invalid:
                    self.counts["refused"] += 1
                    turn.action, turn.parse_error = None, scene.invalid
        self._end(scene)

    def _seat_all(self, deal: Deal) -> None:
        host, task, game = self.host, self.task, self.game
        game.env_id = deal.name
        names = host.assign(task, deal.infos) if host.assign else {agent: agent for agent in deal.agents}
        for number, agent in enumerate(deal.agents):
            name = names.get(agent)
            if name not in host.seats:
                raise ConfigError(f"{deal.name}: no seat for {agent} ({name}): there are {', '.join(host.seats)}")
            seat = host.seats[name]
            game.returns[agent] = 0.0
            game.trajectories[agent] = Trajectory(
                env_id=deal.name,
                env_seed=task.env_seed,
                group=task.group,
                member=task.member * len(deal.agents) + number,
                sampling_seed=seeding.seat_seed(task.sampling_seed, number),
                policy=seat.policy.name,
                attempts=game.attempts,
                info={"agent": agent, "seat": name, "trainable": seat.trainable, "game": game.id},
            )
            self.places.seat(agent, seat.policy, (task.index, task.member, number), task.group)
        self.rng = np.random.default_rng(seeding.seat_seed(task.sampling_seed, len(deal.agents)))

    def _take(self, scene: Scene) -> None:
        """Give every agent what it received: to its last turn, or to its first if there is none yet."""
        for agent, reward in scene.rewards.items():
            if agent not in self.game.returns:
                raise EnvError(f"{agent} is none of the environment's possible_agents")
            self.game.returns[agent] += reward
            turns = self.game.trajectories[agent].turns
            if turns:
                turns[-1].reward += reward
            else:
                self.early[agent] = self.early.get(agent, 0.0) + reward
        for agent, (observation, info, truncated) in scene.left.items():
            trajectory = self.game.trajectories[agent]
            trajectory.status = trajectory.status or (Status.TRUNCATED if truncated else Status.DONE)
            if agent in self.dialogues:
                told = {"success": info.get("won"), **info, "instructions": None}
                self.dialogues[agent].end(told, observation)

    async def _decide(self, agent: str, scene: Scene) -> tuple[Turn | None, str]:
        """The agent's turn and action, asked for as often as ``rollout.parse_limit`` says; or one made for it."""
        admissible = scene.info.get("admissible_commands") or []
        observation = scene.observation
        if note := self.played_for.pop(agent, None):
            observation = f"You gave no valid answer; {note}.\n\n{observation}"
        config, trajectory = self.host.config, self.game.trajectories[agent]
        for _ in range(config.parse_limit):
            if agent in self.full or len(trajectory.turns) >= config.max_turns:
                break
            dialogue = self._dialogue(agent, scene)
            try:
                dialogue.prompt(observation, admissible)
            except ContextFull as error:
                if not trajectory.turns:
                    raise first_prompt_too_long(self.game.env_id, error, dialogue.kept, config) from error
                self.full.add(agent)
                self.counts["context_full"] += 1
                trajectory.status = Status.CONTEXT_FULL
                break
            self.asked = dialogue.policy.name
            with self.places.turn(agent) as session:
                turn = await dialogue.write(session, scene.info, admissible)
            turn.reward += self.early.pop(agent, 0.0)
            self.counts["turns"] += 1
            self.counts["cut"] += turn.finish == "length"
            if turn.action is not None:
                return turn, turn.action
            self.counts["parse_errors"] += 1
            observation = f"Invalid answer: {turn.parse_error}."
        self.counts["fallbacks"] += 1
        action = str(admissible[int(self.rng.integers(len(admissible)))]) if admissible else ""
        self.played_for[agent] = f"{action} was played for you" if action else "nothing was said for you"
        return None, action

    def _dialogue(self, agent: str, scene: Scene) -> Dialogue:
        if agent not in self.dialogues:
            host, trajectory = self.host, self.game.trajectories[agent]
            seat = host.seats[trajectory.info["seat"]]
            self.dialogues[agent] = Dialogue(
                seat.policy,
                make_codec(seat.codec),
                make_context(seat.context, seat.policy.renderer.escape, host.config.max_turns),
                host.config.limits,
                trajectory,
                str(scene.info["instructions"]),
            )
        return self.dialogues[agent]

    def _end(self, scene: Scene) -> None:
        game = self.game
        for trajectory in game.trajectories.values():
            trajectory.status = trajectory.status or Status.TRUNCATED
        ended = {t.status for t in game.trajectories.values()}
        game.status = game.status or (Status.TRUNCATED if Status.TRUNCATED in ended else Status.DONE)
        game.metrics = {**scene.metrics, **{name: float(count) for name, count in self.counts.items()}}
