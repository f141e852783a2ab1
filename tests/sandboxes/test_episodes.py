"""Episodes whose sandbox fails: typed, tried again, and never a reward."""

from __future__ import annotations

import threading
import time

import pytest
from agentgym.sandboxes import docker, reaper

from agentgym.env_worker import EnvPool
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.tool_calls import Call, canonical

pytestmark = pytest.mark.docker

WAIT = canonical([Call("python", {"code": "import time; time.sleep(0.4)"})])


class SlowExpert(ExpertPolicy):
    """The expert, after three calls that take their time."""

    def act(self, info, turn, rng):
        return WAIT if turn < 3 else super().act(info, turn - 3, rng)


def play(retries, trouble):
    """Play two groups of two while ``trouble`` comes half a second after the first box is there."""
    with EnvPool("agentgym/PythonMath-v0", {"backend": "docker", "max_steps": 12}) as pool:
        config = RolloutConfig(max_turns=12, retries=retries, max_failure_rate=1.0, max_new_tokens=2000)
        rollout = Rollout(pool, SlowExpert(), config)
        thread = threading.Thread(target=trouble)
        thread.start()
        groups = rollout.collect(group_tasks(0, 0, 2, 2))
        thread.join()
        return groups, rollout.stats


def wait_for_boxes(count):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with docker.client() as api:
            running = api.containers(filters={"label": f"{reaper.LABEL}={reaper.owner()}"})
        if len(running) >= count:
            time.sleep(0.5)
            return running
        time.sleep(0.05)
    raise AssertionError("no boxes came up")


def test_a_daemon_that_is_killed_in_mid_episode(docker_daemon):
    def trouble():
        wait_for_boxes(4)
        docker_daemon.kill()
        time.sleep(0.5)
        docker_daemon.start()

    groups, stats = play(2, trouble)
    assert stats.errors.keys() == {"sandbox_error"}
    assert stats.errors["sandbox_error"] >= 1
    assert stats.retries == stats.errors["sandbox_error"]
    assert [len(group.trajectories) for group in groups] == [2, 2]
    for trajectory in (t for group in groups for t in group.trajectories):
        assert (trajectory.status, trajectory.success) == ("done", True)
        assert [turn.reward for turn in trajectory.turns] == [0.0] * (len(trajectory.turns) - 1) + [1.0]
    assert any(t.attempts > 1 for group in groups for t in group.trajectories)


def test_without_retries_the_group_is_dropped_and_counted(docker_host):
    def trouble():
        victim = wait_for_boxes(4)[0]
        with docker.client() as api:
            api.kill(victim["Id"])

    groups, stats = play(0, trouble)
    assert stats.errors == {"sandbox_error": 1}
    assert (stats.groups, stats.dropped_groups, stats.episodes) == (2, 1, 4)
    assert len(groups) == 1
    assert all(t.success for t in groups[0].trajectories)
