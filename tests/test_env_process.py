"""Environments in processes of their own: whatever they do, the run goes on, and nothing outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest

from agentgym.env_worker import EnvConfig, EnvPool
from agentgym.errors import ConfigError, TooManyFailures
from agentgym.policies.scripted import CannedPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.types import Status

MORTAL = "helpers_death:test/Mortal-v0"
ALL_WAYS = ("raise", "exit", "kill", "segv", "sleep", "block")


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            found |= {int(p) for p in (task / "children").read_text().split()}
    return found


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = children()
    yield
    deadline = time.monotonic() + 5
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children() <= before


def settings(**values) -> RolloutConfig:
    return RolloutConfig(**{"step_timeout": 20.0, "retries": 1, "max_failure_rate": 1.0, **values})


def play(processes=2, groups=3, size=2, config=None, **env):
    seen = []
    with EnvPool(MORTAL, env, processes) as pool:
        rollout = Rollout(pool, CannedPolicy(["go"]), config or settings(), on_episode=seen.append)
        found = rollout.collect(group_tasks(0, 0, groups, size))
    return found, rollout.stats, seen


def seed_of(group: int) -> int:
    return group_tasks(0, 0, group + 1, 1)[group].env_seed


def test_episodes_are_played_elsewhere_and_are_what_they_are_here():
    there, stats, _ = play()
    here, _, _ = play(processes=0)

    def what(groups):
        everything = [t for g in groups for t in g.trajectories]
        return [(t.group, t.member, t.messages, t.episode_return, t.status, t.success) for t in everything]

    assert what(there) == what(here)
    assert stats.errors == {}
    pids = {t.info["pid"] for g in there for t in g.trajectories}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {t.info["pid"] for g in here for t in g.trajectories} == {os.getpid()}


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("how", ALL_WAYS)
def test_an_environment_that_breaks_once_is_tried_again(tmp_path, how, at):
    patience = {"step_timeout": 5.0} if how in ("sleep", "block") else {}
    bad = seed_of(1)
    found, stats, _ = play(
        processes=3, groups=3, size=1, config=settings(retries=3, **patience),
        how=how, at=at, seeds=(bad,), marks=str(tmp_path), times=1,
    )  # fmt: skip
    assert [g.id for g in found] == ["00000-000", "00000-001", "00000-002"]
    assert all(t.status is Status.DONE and t.episode_return == 3.0 for g in found for t in g.trajectories)
    assert found[1].trajectories[0].attempts == 2
    assert len(list(tmp_path.iterdir())) == 1
    kind = "timeout" if patience else "env_error"
    assert stats.errors[kind] >= 1
    message = stats.messages[kind]
    says = {"raise": "RuntimeError: broken", "exit": "exit code 3", "kill": "SIGKILL", "segv": "SIGSEGV"}
    assert says.get(how, "took longer than 5 s") in message


@pytest.mark.parametrize("how", ["exit", "block"])
def test_a_seed_that_always_kills_its_process_costs_its_own_group_only(how):
    patience = {"step_timeout": 5.0} if how == "block" else {}
    bad = (seed_of(2),)
    found, stats, seen = play(processes=4, groups=4, size=1, config=settings(**patience), how=how, at=1, seeds=bad)
    assert [g.id for g in found] == ["00000-000", "00000-001", "00000-003"]
    assert stats.dropped_groups == 1
    failed = [t for t in seen if t.status and t.status.failed]
    assert [(t.group, t.attempts) for t in failed] == [("00000-002", 2)]


def test_what_shares_a_process_with_one_that_dies_is_played_again(tmp_path):
    found, stats, _ = play(
        processes=1, groups=4, size=1, config=settings(retries=3), how="kill", at=2, seeds=(seed_of(0),),
        marks=str(tmp_path), times=1,
    )  # fmt: skip
    assert len(found) == 4
    assert stats.errors["env_error"] >= 1
    assert len({t.info["pid"] for g in found for t in g.trajectories}) <= 2


def test_what_shares_a_process_with_one_that_hangs_plays_on(tmp_path):
    found, stats, _ = play(
        processes=1, groups=4, size=1, config=settings(step_timeout=5.0), how="sleep", at=2, seeds=(seed_of(0),),
        marks=str(tmp_path), times=1,
    )  # fmt: skip
    assert len(found) == 4
    assert stats.errors == {"timeout": 1}
    assert [t.attempts for g in found for t in g.trajectories] == [2, 1, 1, 1]


def test_an_answer_that_cannot_be_read_costs_its_process_and_not_the_run(tmp_path):
    found, stats, _ = play(
        processes=1, groups=2, size=1, how="unreadable", at=1, seeds=(seed_of(0),), marks=str(tmp_path), times=1,
    )  # fmt: skip
    assert len(found) == 2
    assert stats.errors["env_error"] >= 1
    assert stats.dropped_groups == 0


def test_a_run_of_deaths_stops():
    with pytest.raises(TooManyFailures, match="the process of the environment died"):
        play(groups=12, size=1, config=settings(retries=0, max_failure_rate=0.2), how="exit")


def test_wrong_arguments_are_the_same_error_as_without_processes():
    with pytest.raises(ConfigError, match="this environment refuses"):
        EnvConfig(MORTAL, {"how": "refuse"}, processes=1).pool()
    with pytest.raises(ConfigError, match=r"wrong env\.kwargs"):
        EnvConfig(MORTAL, {"nonsense": 1}, processes=1).pool()
    with pytest.raises(ConfigError, match=r"env\.processes is -1"):
        EnvConfig(MORTAL, processes=-1)


def test_arguments_that_cannot_be_sent_are_a_clear_error():
    with pytest.raises(ConfigError, match=r"env\.kwargs cannot be sent to another process"):
        EnvConfig(MORTAL, {"how": lambda: None}, processes=1).pool()


def test_an_environment_that_only_this_process_knows_is_a_clear_error():
    gym.register("test/Here-v0", entry_point=lambda: None)
    try:
        with pytest.raises(ConfigError, match="unknown environment 'test/Here-v0'"):
            EnvConfig("test/Here-v0", processes=1).pool()
    finally:
        gym.registry.pop("test/Here-v0")


@pytest.mark.parametrize("how", ["", "sleep", "block"])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_end_with_their_owner_however_it_ends(tmp_path, how, kind):
    script = f"""
import asyncio, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from agentgym.env_worker import EnvPool
async def main():
    pool = EnvPool({MORTAL!r}, {{"how": {how!r}, "at": 1}}, processes=2)
    workers = [pool.take(), pool.take()]
    for worker in workers:
        await worker.reset(0, {{}}, 60.0)
    for process in pool._processes:
        print(process._process.pid)
    calls = [asyncio.create_task(w.step("go", 1000.0)) for w in workers]
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    time.sleep(1000)
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pids = []
    for line in owner.stdout:
        if line.strip() == "ready":
            break
        pids.append(int(line))
    assert len(pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    owner.send_signal(kind)
    owner.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
