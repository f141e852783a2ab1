"""Groups played ahead of the learner: every one that was started is trained once, dropped and counted, or under way."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

import helpers_envs
import pytest
from agentgym.trainers import grpo
from helpers_envs import RELEASE
from helpers_threads import none_left

from agentgym.ahead import AheadRollout, oldest
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EngineError, TooManyFailures
from agentgym.policies.base import Generation
from agentgym.policies.scripted import CannedPolicy
from agentgym.rollout import RolloutConfig, group_tasks

GROUPS, SIZE = 3, 2


@pytest.fixture(autouse=True)
def clean():
    """No test sees what another left, and none leaves a thread behind."""
    with none_left(helpers_envs.forget, RELEASE):
        yield


class Versioned(CannedPolicy):
    """Says go, with the version that it has now; fails at every ``fails``-th turn."""

    def __init__(self, fails: int = 0):
        super().__init__(["go"])
        self.version, self.fails, self.turns = 0, fails, 0

    def open(self):
        session, policy = super().open(), self

        class Session:
            live = True
            begin, close = session.begin, session.close

            async def generate(self, request):
                policy.turns += 1
                if policy.fails and policy.turns % policy.fails == 0:
                    raise EngineError("the server was killed")
                generation = await session.generate(request)
                return Generation(generation.ids, generation.logps, policy.version, "stop")

        return Session()


@contextlib.contextmanager
def ahead(staleness=1, policy=None, books=None, settings=None, **env):
    config = RolloutConfig(**{"step_timeout": 0.2, "retries": 1, "concurrency": 4, **(settings or {})})
    with EnvPool("test/Fault-v0", env) as pool:
        rollout = AheadRollout(pool, policy or Versioned(), config)
        rollout.begin(staleness, books)
        try:
            yield rollout
        finally:
            RELEASE.set()
            rollout.close()


def tasks(step, seed=0):
    return group_tasks(seed, step, GROUPS, SIZE)


def name(number):
    return f"{number // GROUPS:05d}-{number % GROUPS:03d}"


def balanced(rollout):
    books = rollout.books()
    return books["started"] == books["trained"] + books["failed"] + books["stale"] + len(books["under_way"])


def train(rollout, steps, first=0):
    """What a trainer does, without learning anything."""
    seen = []
    for step in range(first, first + steps):
        groups = rollout.collect(tasks(step))
        assert balanced(rollout)
        seen += [(group, rollout.policy.version) for group in groups]
        rollout.policy.version += 1
        rollout.settle()
        assert balanced(rollout)
    return seen


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_group_is_a_task_of_the_run_and_is_trained_once(staleness):
    with ahead(staleness) as rollout:
        seen = train(rollout, 6)
        books = rollout.books()
    names = [group.id for group, _ in seen]
    assert len(set(names)) == len(names) == 6 * GROUPS == books["trained"]
    planned = {task.group: task.env_seed for step in range(10) for task in tasks(step)}
    for group, version in seen:
        assert group.env_seed == planned[group.id]
        assert [t.member for t in group.trajectories] == list(range(SIZE))
        assert 0 <= version - oldest(group) <= staleness
        if not staleness:
            assert group.id.startswith(f"{version:05d}")
    assert books["started"] <= (6 + staleness) * GROUPS


def test_groups_are_played_while_the_learner_learns():
    with ahead(1, delay=0.002) as rollout:
        rollout.collect(tasks(0))
        time.sleep(0.5)  # learning
        assert rollout._ready.qsize() == GROUPS
        rollout.settle()
        before = rollout.policy.turns
        rollout.collect(tasks(1))
        assert rollout.policy.turns - before < GROUPS * SIZE, "it was not ready"


def test_what_is_too_old_is_dropped_counted_and_replaced():
    with ahead(1) as rollout:
        rollout.collect(tasks(0))
        rollout.settle()
        time.sleep(0.3)  # those of the next step are played by version 0
        rollout.policy.version = 2
        groups = rollout.collect(tasks(1))
        assert len(groups) == GROUPS
        assert all(oldest(group) >= 1 for group in groups)
        assert rollout.counts["stale"] == GROUPS
        metrics = rollout.metrics([t for g in groups for t in g.trajectories])
        assert metrics["rollout/staleness"] == 0.0
        assert metrics["rollout/stale_groups"] == GROUPS
        tokens = sum(t.action_tokens for g in groups for t in g.trajectories)
        assert 0 < metrics["perf/action_tok_s"] < tokens / 0.3
        rollout.settle()
        assert balanced(rollout)


def test_a_run_that_stopped_plays_again_what_was_under_way():
    """Nothing is lost and nothing is trained twice, wherever it stops: before, in or after an update."""
    trained = Counter()
    books = None
    for settled in (True, False, True):
        with ahead(2, books=books) as rollout:
            for _ in range(2):
                groups = rollout.collect(tasks(0))
                rollout.settle()
                trained.update(group.id for group in groups)
            groups = rollout.collect(tasks(0))
            if settled:
                trained.update(group.id for group in groups)
                rollout.settle()
            assert balanced(rollout)
            books = rollout.books()
    numbers = {name(n) for n in range(books["started"])}
    assert set(trained) | {name(n) for n in books["under_way"]} == numbers
    assert not set(trained) & {name(n) for n in books["under_way"]}
    assert max(trained.values()) == 1


def test_two_hundred_steps_with_faults_end_with_balanced_books():
    """Environments that raise, an engine that fails: typed, repeated, dropped and counted; no reward is invented."""
    seeds = tuple(t.env_seed for step in range(0, 220, 5) for t in tasks(step)[::SIZE][:1])
    policy = Versioned(fails=37)
    with ahead(2, policy, fault="raise", at=2, times=4, seeds=seeds, settings={"concurrency": 8}) as rollout:
        seen = train(rollout, 200)
        books = rollout.books()
    assert books["trained"] == 200 * GROUPS
    assert books["failed"] >= 40, "no group failed"
    assert balanced(rollout)
    names = [group.id for group, _ in seen]
    assert len(set(names)) == len(names)
    failing = {name(n) for n in range(0, 220 * GROUPS, 5 * GROUPS)}
    for group, _ in seen:
        assert all(t.status and not t.status.failed and t.episode_return == 3.0 for t in group.trajectories)
    assert len(failing & set(names)) < 5, "a group that fails was trained on"
    assert rollout.stats.errors["env_error"] >= 2 * 40
    assert rollout.stats.errors["engine_error"] > 0
    assert rollout.stats.retries > 0


def test_too_many_failures_stop_the_run():
    with ahead(1, fault="raise", at=1) as rollout, pytest.raises(TooManyFailures, match="it broke"):
        train(rollout, 20)


def test_an_environment_that_hangs_costs_its_group():
    seed = tasks(1)[0].env_seed
    with ahead(1, fault="hang", at=1, seeds=(seed,), settings={"max_failure_rate": 0.9}) as rollout:
        seen, step = train(rollout, 4), 4
        deadline = time.monotonic() + 20
        while not rollout.counts["failed"]:
            assert time.monotonic() < deadline
            seen += train(rollout, 1, step)
            step += 1
    assert "00001-000" not in [group.id for group, _ in seen]


def test_closing_does_not_wait_for_what_is_under_way():
    with ahead(1, fault="hang", at=1, settings={"step_timeout": 30.0}) as rollout:
        rollout._fill(tasks(0))
        time.sleep(0.1)
        started = time.monotonic()
        rollout.close()
        assert time.monotonic() - started < 5
        RELEASE.set()


@pytest.mark.parametrize("wrong", [list(tasks(0)), group_tasks(0, 0, GROUPS, SIZE, first=2)])
def test_tasks_that_depend_on_what_was_learned_are_refused(wrong):
    with ahead(1) as rollout, pytest.raises(ConfigError, match=r"decode.staleness is above 0.*use 0"):
        rollout.collect(wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode": {"staleness": 1}}, "needs decode.backend=vllm"),
        ({"decode": {"staleness": -1}}, "0 or more"),
        ({"decode": {"backend": "vllm", "staleness": 1}, "preset": "dapo"}, "algo.resample"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        grpo.make_config(values)
