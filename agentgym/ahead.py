"""Rollouts that do not wait for the learner: groups are played ahead, and those that grew too stale are dropped.

With a staleness of k the groups of the next k steps are played while the learner updates; it takes them in the order in
which they end. A group whose oldest token is more than k versions old is dropped, counted, and replaced by a later one.
So every group that was started was trained once, failed, was dropped, or is still under way; what is under way when a
run stops is played again when it goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.errors import ConfigError
from agentgym.rollout import Parts, Rollout, StepTasks, Task
from agentgym.types import Group, Trajectory

_COUNTS = ("started", "trained", "failed", "stale")


class AheadRollout(Rollout):
    """A `Rollout` for a policy that decodes elsewhere; its episodes are played on a thread of their own.

    Attributes:
        staleness: Most versions that a token of a trained group may be older than the policy.
        counts: Groups that were started, and those of them that were trained, that failed, and that were too stale.
    """

    def begin(self, staleness: int, books: Mapping[str, Any] | None = None) -> None:
        """Say how far to play ahead; before the first `collect`.

        Args:
            staleness: Versions.
            books: What `books` gave when the run stopped.
        """
        kept: Mapping[str, Any] = books or {}
        self.staleness = staleness
        self.counts = {name: int(kept.get(name, 0)) for name in _COUNTS}
        self._again = sorted(int(number) for number in kept.get("under_way", ()))
        self._under_way: dict[str, int] = {}
        self._given: list[str] = []
        self._before = time.perf_counter()
        self._ready: queue.SimpleQueue[Group | str | BaseException] = queue.SimpleQueue()
        self._end, self._up = asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._up.wait()

    def books(self) -> dict[str, Any]:
        """How many groups were started and what became of them; those under way by number."""
        return {**self.counts, "under_way": sorted([*self._under_way.values(), *self._again])}

    def collect(self, tasks: Sequence[Task]) -> list[Group]:
        """As many groups as ``tasks`` holds, whichever end first; they are under way until they are settled.

        Raises:
            ConfigError: If the tasks of later steps cannot be known now.
            TooManyFailures: If more groups failed than ``max_failure_rate`` allows.
        """
        if not isinstance(tasks, StepTasks) or tasks.first:
            raise ConfigError(
                "decode.staleness is above 0, but what this trainer plays next depends on what came before: use 0"
            )
        out: list[Group] = []
        while len(out) < tasks.groups:
            self._fill(tasks)
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Group) and self.policy.version - oldest(item) <= self.staleness:
                out.append(item)
                continue
            name, why = (item.id, "stale") if isinstance(item, Group) else (item, "failed")
            del self._under_way[name]
            self.counts[why] += 1
        self._given = [group.id for group in out]
        return sorted(out, key=lambda group: group.id)

    def settle(self) -> None:
        """Say that what `collect` gave last was trained."""
        for name in self._given:
            del self._under_way[name]
        self.counts["trained"] += len(self._given)
        self._given = []

    def metrics(self, trained: Sequence[Trajectory]) -> dict[str, float]:
        """How old what is trained now is, what was dropped since the start, and tokens a second since the last time."""
        segments = [s for t in trained for s in t.segments]
        ages = [self.policy.version - v for s in segments for v in itertools.compress(s.versions, s.mask)]
        before, self._before = self._before, time.perf_counter()
        return {
            "rollout/staleness": float(np.mean(ages)),
            "rollout/stale_groups": float(self.counts["stale"]),
            "perf/action_tok_s": len(ages) / (self._before - before),
        }

    def close(self) -> None:
        """End what is under way."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _fill(self, tasks: StepTasks) -> None:
        """Keep groups of this step and of the next ``staleness`` ones under way."""
        while len(self._under_way) < tasks.groups * (self.staleness + 1):
            if self._again:
                number = self._again.pop(0)
            else:
                number, self.counts["started"] = self.counts["started"], self.counts["started"] + 1
            group = tasks.group(*divmod(number, tasks.groups))
            self._under_way[group[0].group] = number
            self._loop.call_soon_threadsafe(self._take, group)

    def _take(self, group: Sequence[Task]) -> None:
        self._parts.expect(group)
        for task in group:
            self._pending.put_nowait(task)

    def _serve(self) -> None:
        try:
            asyncio.run(self._play())
        except BaseException as error:
            self._ready.put(error)

    async def _play(self) -> None:
        self._loop, self._parts = asyncio.get_running_loop(), Parts()
        self._pending: asyncio.Queue[Task] = asyncio.Queue()
        self._up.set()
        done: asyncio.Queue[Trajectory] = asyncio.Queue()
        workers = [asyncio.create_task(self._work(self._pending.get, done)) for _ in range(self.config.concurrency)]
        tasks = [asyncio.create_task(self._pass_on(done, workers)), asyncio.create_task(self._end.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            while left := [task for task in (*tasks, *workers) if not task.done()]:
                for task in left:  # again and again: one that just got what it waited for may not notice
                    task.cancel()
                await asyncio.wait(left, timeout=0.1)

    async def _pass_on(self, done: asyncio.Queue[Trajectory], workers: Sequence[asyncio.Task[None]]) -> None:
        async for item in self._ended(done, workers, self._parts):
            self._ready.put(item)


def oldest(group: Group) -> int:
    """The version that sampled the oldest token of a group."""
    segments = [s for t in group.trajectories for s in t.segments]
    return min(v for s in segments for v in itertools.compress(s.versions, s.mask))
