"""Episodes, run concurrently in groups, each failure with a type.

A group shares one environment seed; its members differ in their sampling seeds alone. What fails outside the policy
is tried again in a fresh environment, and if that does not help the whole group is dropped and counted: a failure is
never a reward of zero.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentgym import seeding
from agentgym.actions import make_codec
from agentgym.attempts import PAUSE_S, all_of, attempt_within, next_done
from agentgym.context import make_context
from agentgym.dialogue import Dialogue, Limits
from agentgym.env_worker import EnvPool, EnvWorker
from agentgym.errors import ConfigError, ContextFull, TooManyFailures
from agentgym.policies.base import Policy, Session
from agentgym.policies.probe import gold_answer, make_probe
from agentgym.registration import codec_of
from agentgym.types import Group, Status, Trajectory

_FEWEST, _WINDOW = 8, 64
"""A run stops for failures after this many groups at least; the failure rate is over this many at most."""


@dataclass
class RolloutConfig:
    """How episodes are played.

    Attributes:
        max_turns: Turns before an episode is truncated.
        max_new_tokens: Tokens a turn may have, the closing one included.
        context_limit: Tokens of prompt and answer together.
        temperature: Sampling temperature.
        top_p: Nucleus; anything below 1 samples from another distribution than the trainer's.
        codec: How text becomes an action: a key of `agentgym.actions.CODECS`; auto: as the environment's entry in the
            registry says.
        context: What the policy sees: append, window:K, workspace.
        parse_limit: Answers in a row without an action before the episode ends.
        concurrency: Episodes that run at the same time.
        step_timeout: Seconds an environment may take for a reset or a step.
        episode_timeout: Seconds an episode may take.
        retries: Fresh environments tried after a failure.
        max_failure_rate: Share of failed groups (among the last 64, at least 8) above which the run stops.
    """

    max_turns: int = 20
    max_new_tokens: int = 32
    context_limit: int = 4096
    temperature: float = 1.0
    top_p: float = 1.0
    codec: str = "auto"
    context: str = "append"
    parse_limit: int = 3
    concurrency: int = 64
    step_timeout: float = 60.0
    episode_timeout: float = 900.0
    retries: int = 2
    max_failure_rate: float = 0.2

    def __post_init__(self) -> None:
        if self.codec != "auto":
            make_codec(self.codec)
        make_context(self.context, str, self.max_turns)
        for name in ("max_turns", "max_new_tokens", "context_limit", "parse_limit", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("step_timeout", "episode_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"rollout.{name} is {getattr(self, name)}: it must be above 0 seconds")
        if self.retries < 0:
            raise ConfigError(f"rollout.retries is {self.retries}: it must be 0 or more")
        if not 0 <= self.max_failure_rate <= 1:
            raise ConfigError(f"rollout.max_failure_rate is {self.max_failure_rate}: it must be between 0 and 1")
        if self.max_new_tokens >= self.context_limit:
            raise ConfigError(
                f"rollout.max_new_tokens ({self.max_new_tokens}) leaves no room in rollout.context_limit "
                f"({self.context_limit})"
            )
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"rollout.temperature is {self.temperature}: it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"rollout.top_p is {self.top_p}: it must be above 0 and at most 1")

    @property
    def limits(self) -> Limits:
        """How turns are sampled."""
        return Limits(self.max_new_tokens, self.context_limit, self.temperature, self.top_p)

    def codec_for(self, env_id: str) -> str:
        """The name of the codec in an environment."""
        return codec_of(env_id) if self.codec == "auto" else self.codec


@dataclass(frozen=True)
class Task:
    """One episode to play.

    Attributes:
        env_seed: Seed of the environment.
        sampling_seed: Seed of the policy's sampling.
        group: Name of the group.
        index: Position of the group in its batch.
        member: Position in the group.
        options: Options of ``env.reset`` for this episode, over those of the rollout.
    """

    env_seed: int
    sampling_seed: int
    group: str
    index: int
    member: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass
class RolloutStats:
    """What happened beside the groups that came out, since the start.

    Attributes:
        groups: Groups that ended.
        dropped_groups: Those of them that failed.
        episodes: Episodes that ended.
        retries: Attempts after the first.
        errors: Failed attempts by status.
        messages: The last message of each status.
        recent: Whether each of the last groups failed.
    """

    groups: int = 0
    dropped_groups: int = 0
    episodes: int = 0
    retries: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def count(self, status: Status, message: str) -> None:
        """Count a failed attempt, keeping one message of each kind."""
        self.errors[status.value] = self.errors.get(status.value, 0) + 1
        self.messages[status.value] = message

    def count_group(self, failed: bool, limit: float, what: str = "groups") -> None:
        """Count a group that ended.

        Args:
            failed: Whether it is dropped.
            limit: Largest share of failed ones.
            what: How the groups are called.

        Raises:
            TooManyFailures: If more failed.
        """
        self.groups += 1
        self.recent.append(failed)
        self.dropped_groups += failed
        if failed and len(self.recent) >= _FEWEST and sum(self.recent) > limit * len(self.recent):
            raise TooManyFailures(
                f"{sum(self.recent)} of the last {len(self.recent)} {what} failed for reasons outside the policy "
                f"({', '.join(f'{k}: {v}' for k, v in self.messages.items())}); "
                f"the limit is rollout.max_failure_rate={limit:g}"
            )


class StepTasks(list[Task]):
    """The tasks of a training step.

    Attributes:
        run_seed: Seed of the run.
        groups: Groups.
        size: Members of a group.
        first: Number of the first group.
    """

    def __init__(self, run_seed: int, step: int, groups: int, size: int, first: int = 0):
        """Make the tasks of groups ``first`` and up."""
        self.run_seed, self.groups, self.size, self.first = run_seed, groups, size, first
        super().__init__(task for place in range(first, first + groups) for task in self.group(step, place))

    def group(self, step: int, place: int) -> list[Task]:
        """The tasks of one group, of this step or another."""
        env_seed, name = seeding.env_seed(self.run_seed, step, place), f"{step:05d}-{place:03d}"
        members = range(self.size)
        return [Task(env_seed, seeding.member_seed(self.run_seed, step, place, m), name, place, m) for m in members]


def group_tasks(run_seed: int, step: int, groups: int, size: int, first: int = 0) -> StepTasks:
    """Tasks of a training step: ``groups`` groups of ``size`` members, numbered from ``first``."""
    return StepTasks(run_seed, step, groups, size, first)


class Parts:
    """Members of groups that are not whole yet."""

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()
        self._members: dict[str, list[Trajectory]] = {}

    def expect(self, tasks: Sequence[Task]) -> int:
        """Say which members will come; the number of groups so far."""
        self._sizes.update(task.group for task in tasks)
        return len(self._sizes)

    def add(self, trajectory: Trajectory) -> list[Trajectory]:
        """The members of a group in order once it is whole, nothing before."""
        members = self._members.setdefault(trajectory.group, [])
        members.append(trajectory)
        if len(members) < self._sizes[trajectory.group]:
            return []
        del self._members[trajectory.group]
        return sorted(members, key=lambda t: t.member)


def check_context(policy: Policy, config: RolloutConfig) -> None:
    """Refuse a context longer than the policy can read.

    Raises:
        ConfigError: If ``rollout.context_limit`` exceeds it.
    """
    if policy.context_limit is not None and config.context_limit > policy.context_limit:
        raise ConfigError(
            f"rollout.context_limit is {config.context_limit}, but the model of {policy.name} has "
            f"{policy.context_limit} positions"
        )


def first_prompt_too_long(where: str, error: ContextFull, kept: int, config: RolloutConfig) -> ConfigError:
    """Build the error for a first prompt that does not fit."""
    return ConfigError(
        f"{where}: the first prompt does not fit: {error}, of which {kept} are kept for "
        f"the answer (rollout.max_new_tokens={config.max_new_tokens}); raise rollout.context_limit"
    )


class Rollout:
    """Plays tasks with a policy in the environments of a pool.

    Attributes:
        stats: Counts since the start, failures among them.
        wrapper: What the gold answer is put into to be scored before every turn (`policies.probe`); None for no probe.
        keep: Names of scalars of ``info`` to keep: of a reset in `Trajectory.info`, of a step in `Turn.info`.
    """

    def __init__(
        self,
        pool: EnvPool,
        policy: Policy,
        config: RolloutConfig,
        options: dict[str, Any] | None = None,
        on_episode: Callable[[Trajectory], None] | None = None,
    ):
        """Prepare; nothing runs yet.

        Args:
            pool: Environments.
            policy: Who acts.
            config: How.
            options: Options of every ``env.reset``, such as ``{"split": "test"}``.
            on_episode: Called with every finished trajectory, failed ones too.
        """
        check_context(policy, config)
        self.pool, self.policy, self.config = pool, policy, config
        self.options = {**(options or {}), **policy.env_options}
        self.on_episode = on_episode
        self.codec = make_codec(config.codec_for(pool.env_id))
        self.context = make_context(config.context, policy.renderer.escape, config.max_turns)
        self.stats = RolloutStats()
        self.wrapper: str | None = None
        self.keep: tuple[str, ...] = ()

    def collect(self, tasks: Sequence[Task]) -> list[Group]:
        """Play tasks to the end; see `stream`. Also works where an event loop runs already, as in a notebook."""
        return sorted(all_of(self.stream(tasks)), key=lambda group: group.id)

    async def stream(self, tasks: Sequence[Task]) -> AsyncIterator[Group]:
        """Play tasks and yield each group once its members are done.

        Raises:
            TooManyFailures: If more groups failed than ``max_failure_rate`` allows.
            ConfigError: If the first prompt does not fit, the environment refuses its options, or members of a
                group start differently.
        """
        pending, parts = iter(tasks), Parts()
        groups = parts.expect(tasks)

        async def following() -> Task | None:
            return next(pending, None)

        done: asyncio.Queue[Trajectory] = asyncio.Queue()
        some = range(min(self.config.concurrency, len(tasks)))
        workers = [asyncio.create_task(self._work(following, done)) for _ in some]
        try:
            ended = self._ended(done, workers, parts)
            for _ in range(groups):
                item = await anext(ended)
                if isinstance(item, Group):
                    yield item
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _ended(
        self, done: asyncio.Queue[Trajectory], workers: Sequence[asyncio.Task[None]], parts: Parts
    ) -> AsyncIterator[Group | str]:
        """Groups as they end, for ever; of those that failed the names."""
        while True:
            trajectory = await next_done(done, workers, self.policy.name)
            self.stats.episodes += 1
            if self.on_episode:
                self.on_episode(trajectory)
            if not (members := parts.add(trajectory)):
                continue
            failed = any(t.status and t.status.failed for t in members)
            self.stats.count_group(failed, self.config.max_failure_rate)
            if failed:
                yield trajectory.group
                continue
            self._check_start(members)
            yield Group(trajectory.group, trajectory.env_seed, members)

    def _check_start(self, members: Sequence[Trajectory]) -> None:
        if len({t.turns[0].observation for t in members}) > 1:
            raise ConfigError(
                f"{self.pool.env_id}: the members of group {members[0].group} start differently, so their returns "
                "cannot be compared: the environment must draw its start from reset(seed=...) alone"
            )

    async def _work(self, following: Callable[[], Awaitable[Task | None]], done: asyncio.Queue[Trajectory]) -> None:
        session = self.policy.open()
        try:
            while (task := await following()) is not None:
                await done.put(await self._attempts(session, task))
        finally:
            session.close()

    async def _attempts(self, session: Session, task: Task) -> Trajectory:
        for attempt in range(1, self.config.retries + 2):
            worker = self.pool.take()
            trajectory = self._blank(task, attempt)
            try:
                status, message = await attempt_within(
                    self._episode(session, worker, task, trajectory), self.config.episode_timeout, self.policy.name
                )
            except BaseException:
                self.pool.discard(worker)
                raise
            if status is None:
                self.pool.give_back(worker)
                return trajectory
            self.pool.discard(worker)
            self.stats.count(status, message)
            trajectory.status, trajectory.error = status, message
            if attempt <= self.config.retries:
                self.stats.retries += 1
                if status is Status.SANDBOX_ERROR:
                    await asyncio.sleep(PAUSE_S * attempt)
        return trajectory

    def _blank(self, task: Task, attempt: int) -> Trajectory:
        return Trajectory(
            env_id=self.pool.env_id,
            env_seed=task.env_seed,
            group=task.group,
            member=task.member,
            sampling_seed=task.sampling_seed,
            policy=self.policy.name,
            attempts=attempt,
        )

    async def _episode(self, session: Session, worker: EnvWorker, task: Task, trajectory: Trajectory) -> None:
        config = self.config
        session.begin((task.index, task.member), task.group)
        observation, info, instructions, tools = await worker.reset(
            task.env_seed, {**self.options, **task.options}, config.step_timeout
        )
        trajectory.info |= self._kept(info)
        probe = None
        if self.wrapper is not None:
            probe = make_probe(self.policy.renderer, gold_answer(info, self.pool.env_id), self.wrapper)
        dialogue = Dialogue(
            self.policy, self.codec, self.context, config.limits, trajectory, instructions, tools, probe
        )
        parse_errors = 0
        for turn in range(config.max_turns):
            admissible = info.get("admissible_commands") or []
            try:
                dialogue.prompt(observation, admissible)
            except ContextFull as error:
                if turn == 0:
                    raise first_prompt_too_long(self.pool.env_id, error, dialogue.kept, config) from error
                trajectory.status = Status.CONTEXT_FULL
                break
            record = await dialogue.write(session, info, admissible)
            if record.action is None:
                parse_errors += 1
                observation = f"Invalid answer: {record.parse_error}."
                if parse_errors >= config.parse_limit:
                    trajectory.status = Status.PARSE_LIMIT
                    break
                continue
            parse_errors = 0
            started = time.perf_counter()
            observation, record.reward, terminated, truncated, info, record.calls = await worker.step(
                record.action, config.step_timeout
            )
            record.env_s = time.perf_counter() - started
            record.info = self._kept(info)
            if terminated or truncated:
                trajectory.status = Status.DONE if terminated else Status.TRUNCATED
                break
        trajectory.status = trajectory.status or Status.TRUNCATED
        dialogue.end(info, observation)

    def _kept(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {k: info[k] for k in self.keep if isinstance(info.get(k), bool | int | float | str)}
