"""Whatever an environment, a policy or a user does, a rollout ends with typed results and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import threading
import time

import helpers_envs
import numpy as np
import pytest
from helpers_envs import BROKEN, MADE, OPEN, RELEASE, RESETS, STEPS, Named
from helpers_policies import tiny_policy
from helpers_threads import none_left

from agentgym import seeding, store
from agentgym.actions import Plain, make_codec
from agentgym.env_worker import EnvConfig, EnvPool, make_env
from agentgym.errors import ConfigError, EngineError, EnvError, MissingDependency, TooManyFailures
from agentgym.policies.base import Generation
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, RandomPolicy
from agentgym.registration import ENVIRONMENTS
from agentgym.rollout import Rollout, RolloutConfig, Task, group_tasks
from agentgym.types import Status

FAULT = "test/Fault-v0"


@pytest.fixture(autouse=True)
def clean():
    """No test sees what another left, and none leaves a thread behind."""
    with none_left(helpers_envs.forget, RELEASE):
        yield


@pytest.fixture(scope="module")
def tiny():
    return tiny_policy()


def config(**settings) -> RolloutConfig:
    return RolloutConfig(**{"step_timeout": 0.2, "episode_timeout": 20.0, "retries": 1, **settings})


@contextlib.contextmanager
def rollout(policy=None, settings=None, options=None, on_episode=None, **env):
    with EnvPool(FAULT, env) as pool:
        try:
            yield Rollout(pool, policy or Named(), settings or config(), options, on_episode)
        finally:
            RELEASE.set()


def play(policy=None, settings=None, groups=2, size=2, **env):
    """Play one step and return groups, the statistics, and every episode, also those of dropped groups."""
    episodes = []
    with rollout(policy, settings, None, episodes.append, **env) as playing:
        return playing.collect(group_tasks(0, 0, groups, size)), playing.stats, episodes


def seed_of(group: int) -> int:
    return seeding.env_seed(0, 0, group)


# ---- failures are typed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("raise", Status.ENV_ERROR, "raised RuntimeError: it broke"),
        ("hang", Status.TIMEOUT, "took longer than 0.2 s"),
        ("exit", Status.ENV_ERROR, "raised SystemExit: 3"),
        ("interrupt", Status.ENV_ERROR, "raised KeyboardInterrupt"),
        ("cancelled", Status.ENV_ERROR, "raised CancelledError"),
        ("stop_iteration", Status.ENV_ERROR, "raised StopIteration"),
        ("timeout", Status.ENV_ERROR, "raised TimeoutError: the server did not answer"),
        ("sandbox", Status.SANDBOX_ERROR, "the container died"),
        ("array", Status.ENV_ERROR, ""),
        ("none", Status.ENV_ERROR, "an observation must be text, but this is NoneType"),
    ],
)
def test_a_failure_of_an_environment_has_its_type(fault, status, message, at):
    groups, stats, episodes = play(groups=1, size=1, fault=fault, at=at)
    assert groups == []
    (episode,) = episodes
    assert (episode.status, episode.attempts) == (status, 2)
    assert message in episode.error
    assert episode.status.failed
    assert len(episode.turns) == at
    assert episode.error == stats.messages[status.value]
    assert stats.errors == {status.value: 2}
    assert (stats.groups, stats.dropped_groups, stats.episodes, stats.retries) == (1, 1, 1, 1)


def test_a_reward_that_is_no_number_is_a_failure_and_not_a_reward():
    groups, _, episodes = play(groups=1, size=1, fault="nan", at=2)
    assert groups == []
    assert (episodes[0].status, episodes[0].error) == (Status.ENV_ERROR, "the reward is nan")
    assert math.isfinite(episodes[0].episode_return)


def test_a_failing_constructor_is_a_failure_of_the_environment():
    groups, _, episodes = play(groups=1, size=1, fault="constructor")
    assert groups == []
    assert episodes[0].status is Status.ENV_ERROR
    assert "test/Fault-v0 cannot be made: RuntimeError: no room" in episodes[0].error


class Breaking(Named):
    """A policy that breaks in its second turn."""

    def __init__(self, error=None, sleep=0.0):
        super().__init__()
        self.error, self.sleep = error, sleep

    async def before(self, name, turn):
        if turn == 1:
            await asyncio.sleep(self.sleep)
            if self.error:
                raise self.error


def test_a_failure_of_the_engine_has_its_type():
    groups, _, (episode,) = play(Breaking(EngineError("out of memory")), groups=1, size=1)
    assert groups == []
    assert (episode.status, episode.error, episode.attempts) == (Status.ENGINE_ERROR, "out of memory", 2)


def test_a_timeout_of_the_engine_is_not_blamed_on_the_length_of_the_episode():
    _, _, (episode,) = play(Breaking(TimeoutError("no answer in 5 s")), groups=1, size=1)
    assert episode.status is Status.ENGINE_ERROR
    assert "no answer in 5 s" in episode.error


def test_an_episode_has_a_deadline():
    policy = Breaking(sleep=30)
    started = time.monotonic()
    groups, _, (episode,) = play(policy, config(episode_timeout=0.2), groups=1, size=1)
    assert time.monotonic() - started < 5
    assert groups == []
    assert (episode.status, episode.error) == (Status.TIMEOUT, "the episode took longer than 0.2 s")
    assert policy.sessions == 0
    assert not OPEN


@pytest.mark.parametrize("error", [ValueError("a bug"), asyncio.CancelledError()])
def test_a_bug_in_a_policy_stops_the_run_and_does_not_hang_it(error):
    policy = Breaking(error)
    with pytest.raises((ValueError, EngineError), match=r"a bug|policy cancelled an episode"):
        play(policy)
    assert policy.sessions == 0
    assert not OPEN


def test_a_wrong_option_stops_the_run_at_once():
    policy = Named()
    with pytest.raises(ConfigError, match="unknown reset option 'splt'"):
        play(policy, groups=20, size=4, fault="config", seeds=(seed_of(3),))
    assert policy.sessions == 0
    assert not OPEN


class Mute(Named):
    """A policy that says the same tokens always."""

    def __init__(self, ids):
        super().__init__()
        self.ids = ids

    def open(self):
        session = super().open()

        async def generate(request):
            return Generation(list(self.ids), [0.0] * len(self.ids), -1, "stop")

        session.generate = generate
        return session


def test_the_other_ends_of_an_episode():
    def status(**arguments):
        groups, _, (episode,) = play(groups=1, size=1, **arguments)
        assert len(groups) == 1
        assert not episode.status.failed
        assert episode.error is None
        return episode.status, len(episode.turns), episode.success, episode.episode_return

    silent = Mute([257])  # nothing but the end of the turn
    assert status() == (Status.DONE, 3, True, 3.0)
    assert status(fault="truncate") == (Status.TRUNCATED, 3, True, 3.0)
    assert status(settings=config(max_turns=2)) == (Status.TRUNCATED, 2, False, 2.0)
    assert status(policy=silent, settings=config(parse_limit=2)) == (Status.PARSE_LIMIT, 2, False, 0.0)
    assert status(policy=silent, settings=config(parse_limit=9, max_turns=4)) == (Status.TRUNCATED, 4, False, 0.0)


def test_only_parse_errors_in_a_row_end_an_episode():
    class Stammering(Mute):
        def open(self):
            session = super().open()

            async def generate(request):
                session.turn += 1
                ids = [257] if session.turn % 3 else request.encode_action("go")
                return Generation(ids, [0.0] * len(ids), -1, "stop")

            session.generate = generate
            return session

    for limit, expected in ((3, (Status.DONE, 9)), (2, (Status.PARSE_LIMIT, 2))):
        _, _, (episode,) = play(Stammering([]), config(parse_limit=limit), groups=1, size=1)
        assert (episode.status, len(episode.turns)) == expected
        wrong = [t.parse_error is not None for t in episode.turns]
        assert wrong == [True, True, False, True, True, False, True, True, False][: len(wrong)]
        assert all((t.action is None) == (t.parse_error is not None) for t in episode.turns)
        assert "Invalid answer: empty answer" in episode.turns[1].observation


# ---- retries and groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise", "hang", "exit", "sandbox"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_failure_is_tried_again_in_a_fresh_environment(fault, at):
    groups, stats, (episode,) = play(groups=1, size=1, fault=fault, at=at, times=1)
    assert [len(g.trajectories) for g in groups] == [1]
    assert (episode.status, episode.attempts, episode.error) == (Status.DONE, 2, None)
    assert episode.episode_return == 3.0
    assert [t.action for t in episode.turns] == ["0.0"] * 3
    assert len(episode.messages) == 1 + 2 * 3
    assert len(MADE) == 2
    assert (stats.retries, stats.dropped_groups, sum(stats.errors.values())) == (1, 0, 1)


def test_the_codec_is_that_of_the_environment_unless_one_is_named():
    assert RolloutConfig(codec="auto").codec_for("agentgym/Shell-v0") == "tools"
    assert RolloutConfig(codec="tagged").codec_for("agentgym/Shell-v0") == "tagged"
    assert RolloutConfig().codec_for("helpers_envs:agentgym/BabyAI-v0") == "plain"
    assert RolloutConfig().codec_for("test/Fault-v0") == "plain"
    with rollout() as playing:
        assert type(playing.codec) is Plain
    for entry in ENVIRONMENTS:
        make_codec(entry.codec)


def test_a_working_environment_is_used_again():
    with rollout(settings=config(concurrency=2)) as playing:
        for step in range(5):
            playing.collect(group_tasks(0, step, 4, 2))
    assert len(MADE) == 2


def test_a_broken_environment_is_closed_and_never_used_again():
    with rollout(settings=config(concurrency=1, retries=3), fault="raise", at=1, times=1, seeds=(seed_of(1),)) as it:
        groups = it.collect(group_tasks(0, 0, 4, 1))
        assert len(groups) == 4
        assert len(MADE) == 2
        deadline = time.monotonic() + 5
        while len(OPEN) > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(OPEN) == [1]
    assert not OPEN


def test_retries_can_be_switched_off():
    _, stats, (episode,) = play(None, config(retries=0), groups=1, size=1, fault="raise", times=1)
    assert (episode.attempts, episode.status, stats.retries) == (1, Status.ENV_ERROR, 0)


def test_a_group_with_one_failing_member_is_dropped_and_the_others_are_as_if_nothing_had_happened():
    healthy, _, _ = play(groups=4, size=3)
    broken, stats, episodes = play(groups=4, size=3, fault="raise", at=2, who=("1.2",))
    assert [g.id for g in broken] == [g.id for g in healthy if g.id != "00000-001"]
    for old, new in zip([g for g in healthy if g.id != "00000-001"], broken, strict=True):
        assert [t.episode_return for t in new.trajectories] == [3.0] * 3
        assert [t.segments for t in old.trajectories] == [t.segments for t in new.trajectories]
        assert [t.member for t in new.trajectories] == [0, 1, 2]
    assert (stats.groups, stats.dropped_groups, stats.episodes) == (4, 1, 12)
    assert {(t.group, t.member) for t in episodes if t.status.failed} == {("00000-001", 2)}


def test_a_hanging_group_does_not_hold_up_the_others():
    started = time.monotonic()
    groups, stats, _ = play(None, config(step_timeout=0.5), groups=6, fault="hang", seeds=(seed_of(2),))
    assert len(groups) == 5
    assert stats.errors == {"timeout": 4}
    assert time.monotonic() - started < 5


def test_too_many_failures_stop_the_run_with_the_reason():
    settings = config(retries=0, max_failure_rate=0.25, concurrency=1)
    bad = tuple(seed_of(g) for g in (1, 3, 8))
    with pytest.raises(TooManyFailures) as caught:
        play(None, settings, groups=20, size=1, fault="raise", seeds=bad)
    message = str(caught.value)
    assert "3 of the last 9 groups failed for reasons outside the policy" in message
    assert "env_error: reset raised RuntimeError: it broke" in message
    assert "rollout.max_failure_rate=0.25" in message
    assert not OPEN
    groups, _, _ = play(None, settings, groups=20, size=1, fault="raise", seeds=bad[:2])
    assert len(groups) == 18


def test_fewer_than_eight_groups_never_stop_a_run():
    groups, stats, _ = play(None, config(retries=0), groups=7, size=1, fault="raise")
    assert (groups, stats.dropped_groups) == ([], 7)


def test_a_long_healthy_past_does_not_hide_that_everything_fails_now():
    bad = tuple(seed_of(g) for g in range(100, 200))
    with (
        rollout(settings=config(retries=0, concurrency=1, max_failure_rate=0.2), fault="raise", seeds=bad) as playing,
        pytest.raises(TooManyFailures, match="13 of the last 64 groups"),
    ):
        playing.collect(group_tasks(0, 0, 200, 1))


# ---- seeds ----------------------------------------------------------------------------------------------


def test_members_of_a_group_start_identically_and_sample_differently(tiny):
    groups, _, _ = play(tiny, config(max_new_tokens=6, max_turns=2, parse_limit=9), groups=5, size=4)
    assert len(groups) == 5
    starts = []
    for group in groups:
        prompts = {tuple(t.segments[0].ids[: t.turns[0].start]) for t in group.trajectories}
        assert len(prompts) == 1
        assert {t.env_seed for t in group.trajectories} == {group.env_seed}
        assert len({t.sampling_seed for t in group.trajectories}) == 4
        assert len({tuple(t.segments[0].ids) for t in group.trajectories}) == 4
        starts.append(prompts.pop())
    assert len(set(starts)) == 5


def test_group_tasks_are_a_pure_function_of_the_seed_and_never_meet():
    tasks = [*group_tasks(3, 7, 5, 4), *group_tasks(3, 7, 5, 4, first=5), *group_tasks(3, 8, 5, 4)]
    assert tasks == [*group_tasks(3, 7, 10, 4), *group_tasks(3, 8, 5, 4)]
    assert len({t.env_seed for t in tasks}) == 15
    assert len({t.sampling_seed for t in tasks}) == 60
    assert not {t.env_seed for t in tasks} & {t.env_seed for t in group_tasks(4, 7, 10, 4)}


def test_an_environment_that_ignores_its_seed_is_found_out():
    with EnvPool("test/Careless-v0", {"rounds": 8}) as pool:
        playing = Rollout(pool, ExpertPolicy(), config())
        with pytest.raises(ConfigError, match=r"test/Careless-v0.*start differently.*reset\(seed"):
            playing.collect(group_tasks(0, 0, 8, 4))
        assert len(Rollout(pool, ExpertPolicy(), config()).collect(group_tasks(0, 0, 8, 1))) == 8


def outcome(groups):
    return {
        (t.group, t.member): (t.segments, [(u.text, u.action, u.reward) for u in t.turns], t.status, t.messages)
        for g in groups
        for t in g.trajectories
    }


@pytest.mark.parametrize("concurrency", [64, 5, 1])
def test_the_same_tasks_give_the_same_trajectories_whatever_the_speed_of_the_environments(tiny, concurrency):
    settings = config(max_new_tokens=6, max_turns=4, concurrency=concurrency, parse_limit=9, step_timeout=30.0)
    first = outcome(play(tiny, settings, groups=5, size=3, length=0)[0])
    assert len(first) == 15
    assert len({len(turns) for _, turns, _, _ in first.values()}) > 1
    for delay in (0.0, 0.004):
        assert outcome(play(tiny, settings, groups=5, size=3, length=0, delay=delay)[0]) == first
    again = tiny_policy()
    assert outcome(play(again, settings, groups=5, size=3, length=0, delay=0.002)[0]) == first


def test_retries_of_one_episode_do_not_change_the_tokens_of_the_others(tiny):
    settings = config(max_new_tokens=6, max_turns=4, parse_limit=9, retries=2)
    first = outcome(play(tiny, settings, groups=4, size=3)[0])
    groups, stats, _ = play(tiny, settings, groups=4, size=3, fault="raise", at=2, times=2, seeds=(seed_of(1),))
    second = outcome(groups)
    assert stats.retries == 2
    assert first.keys() == second.keys()
    for key, (segments, turns, *_) in first.items():
        assert [s.ids for s in second[key][0]] == [s.ids for s in segments]
        assert [s.mask for s in second[key][0]] == [s.mask for s in segments]
        assert second[key][1] == turns
        for old, new in zip(segments, second[key][0], strict=True):
            np.testing.assert_allclose(new.logps, old.logps, atol=1e-5)


def test_a_failed_attempt_leaves_nothing_in_the_trajectory(tiny):
    settings = config(max_new_tokens=6, parse_limit=9)
    ((healthy,),) = [g.trajectories for g in play(tiny, settings, groups=1, size=1)[0]]
    ((retried,),) = [g.trajectories for g in play(tiny, settings, groups=1, size=1, fault="raise", at=2, times=1)[0]]
    assert (healthy.attempts, retried.attempts) == (1, 2)
    assert retried.segments == healthy.segments
    assert retried.messages == healthy.messages


# ---- interruption ---------------------------------------------------------------------------------------


class Interrupting(Named):
    """Presses Ctrl-C in the middle."""

    async def before(self, name, turn):
        if len(self.asked) == 40:
            os.kill(os.getpid(), signal.SIGINT)


def nothing_steps():
    before = len(STEPS)
    time.sleep(0.05)
    return len(STEPS) == before


def test_ctrl_c_in_mid_rollout_leaves_nothing_behind():
    policy = Interrupting()
    with pytest.raises(KeyboardInterrupt), rollout(policy, delay=0.002, length=50) as playing:
        playing.collect(group_tasks(0, 0, 8, 4))
    assert 40 <= len(policy.asked) < 1600
    assert policy.sessions == 0
    assert not OPEN
    assert nothing_steps()


def test_a_model_plays_on_after_ctrl_c():
    policy, settings = tiny_policy(), config(max_new_tokens=6, max_turns=4, parse_limit=9)
    first = outcome(play(policy, settings, groups=3)[0])

    def press(_):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), rollout(policy, settings, None, press, length=0) as playing:
        playing.collect(group_tasks(0, 0, 8, 4))
    assert not policy._sessions
    assert outcome(play(policy, settings, groups=3)[0]) == first


@pytest.mark.parametrize("after", [0, 1, 5, 20])
async def test_a_cancelled_rollout_leaves_nothing_behind(after):
    policy = Named()
    with rollout(policy, delay=0.002, length=50) as playing:

        async def run():
            async for _ in playing.stream(group_tasks(0, 0, 8, 4)):
                pass

        task = asyncio.create_task(run())
        for _ in range(after):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert policy.sessions == 0
    assert not OPEN
    assert nothing_steps()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_consumer_may_stop_early():
    policy = Named()
    with rollout(policy, delay=0.002) as playing:
        async with contextlib.aclosing(playing.stream(group_tasks(0, 0, 30, 1))) as groups:
            async for _ in groups:
                break
        assert policy.sessions == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not OPEN


def test_an_error_of_the_caller_leaves_nothing_behind():
    def full(_):
        raise OSError("no space left on device")

    policy = Named()
    with pytest.raises(OSError, match="no space"), rollout(policy, None, None, full) as playing:
        playing.collect(group_tasks(0, 0, 8, 4))
    assert policy.sessions == 0
    assert not OPEN


def test_an_abandoned_environment_is_closed_when_it_comes_back_and_never_stepped():
    with rollout(settings=config(retries=0), fault="hang", at=1) as playing:
        playing.collect(group_tasks(0, 0, 2, 2))
        assert len(OPEN) == 4
        steps = len(STEPS)
        RELEASE.set()
    assert not OPEN
    assert len(STEPS) - steps == 4  # each finished the step it hung in


def test_closing_a_pool_does_not_wait_for_each_hanging_environment():
    with rollout(settings=config(retries=0, step_timeout=0.05), fault="hang", at=0) as playing:
        playing.collect(group_tasks(0, 0, 5, 2))
        started = time.monotonic()
        playing.pool.close(timeout=0.2)
        assert time.monotonic() - started < 1.0


def test_an_environment_that_cannot_be_closed_is_only_a_warning(caplog):
    groups, _, _ = play(groups=1, size=2, fault="close", at=99)
    assert len(groups) == 1
    assert "closing the environment raised RuntimeError: cannot close" in caplog.text


def test_many_rollouts_do_not_gather_threads_or_environments():
    before = threading.active_count()
    with rollout(settings=config(concurrency=3, retries=1), fault="raise", at=1, times=1) as playing:
        for step in range(30):
            assert len(playing.collect(group_tasks(0, step, 2, 2))) == 2
            assert len(playing.pool._closing) <= 8
        assert threading.active_count() - before <= 3 + 8
        assert len(MADE) > 30
    assert threading.active_count() == before


def test_a_rollout_works_where_a_loop_runs_already(tiny):
    settings = config(max_new_tokens=6, parse_limit=9)
    plain = outcome(play(tiny, settings)[0])

    async def notebook():
        return outcome(play(tiny, settings)[0])

    assert asyncio.run(notebook()) == plain


def test_ctrl_c_ends_a_rollout_where_a_loop_runs_already():
    policy = Interrupting()

    async def notebook():
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a notebook's kernel
        try:
            with rollout(policy, delay=0.002, length=50) as playing:
                playing.collect(group_tasks(0, 0, 8, 4))
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            signal.signal(signal.SIGINT, before)

    assert asyncio.run(notebook()) == "interrupted"
    assert len(policy.asked) < 1600
    assert policy.sessions == 0
    assert not OPEN
    assert nothing_steps()


def test_no_tasks_give_no_groups():
    with rollout() as playing:
        assert playing.collect([]) == []


# ---- what an environment may say ------------------------------------------------------------------------


def test_a_first_prompt_that_does_not_fit_stops_the_run_before_anything_is_generated():
    policy = tiny_policy()
    with pytest.raises(ConfigError) as caught:
        play(policy, config(context_limit=60, max_new_tokens=40))
    for part in (FAULT, "first prompt does not fit", "the context holds 20", "rollout.max_new_tokens=40"):
        assert part in str(caught.value)
    assert policy.stats["sampled"] == 0
    assert not policy._sessions


def test_a_context_beyond_the_model_is_refused():
    with pytest.raises(ConfigError, match=r"rollout.context_limit is 5000, but the model of tiny has 4096 positions"):
        play(tiny_policy(), config(context_limit=5000))


def test_a_full_context_ends_the_episode_but_not_the_group(tiny):
    settings = config(context_limit=160, max_new_tokens=16, parse_limit=99, max_turns=50)
    groups, _, episodes = play(tiny, settings, length=50)
    assert len(groups) == 2
    for episode in episodes:
        assert episode.status is Status.CONTEXT_FULL
        assert 1 <= len(episode.turns) < 50
        assert len(episode.messages) == 1 + 2 * len(episode.turns)
        assert all(len(s) <= 160 for s in episode.segments)


def test_a_huge_observation_fills_the_context(tiny):
    settings = config(max_new_tokens=6, parse_limit=99, max_turns=9, context_limit=2000, step_timeout=5.0)
    groups, _, episodes = play(tiny, settings, groups=1, size=2, fault="huge", at=1, length=5)
    assert len(groups) == 1
    assert {t.status for t in episodes} <= {Status.CONTEXT_FULL, Status.TRUNCATED}
    assert any(t.status is Status.CONTEXT_FULL for t in episodes)
    assert all(len(s) < 2000 for t in episodes for s in t.segments)


@pytest.mark.parametrize("fault", ["surrogate", "special", "empty"])
@pytest.mark.parametrize("scripted", [True, False])
def test_strange_text_is_read_and_cannot_fake_a_turn(tiny, fault, scripted, tmp_path):
    policy = Named() if scripted else tiny
    settings = config(max_new_tokens=6, parse_limit=99)
    groups, _, episodes = play(policy, settings, groups=1, size=2, fault=fault, at=-1)
    assert len(groups) == 1
    for episode in episodes:
        close = policy.renderer.close_id
        (segment,) = episode.segments
        context = [i for i, m in zip(segment.ids, segment.mask, strict=True) if not m]
        lengths = sum(t.finish == "length" for t in episode.turns[:-1])
        assert context.count(close) == 1 + len(episode.turns) + lengths
        text = "".join([*(m["content"] for m in episode.messages), episode.final_observation])
        assert text.encode().decode() == text
    store.write(tmp_path / "t.jsonl", episodes)
    assert store.read(tmp_path / "t.jsonl") == episodes


def test_ten_thousand_turns():
    settings = config(max_turns=10_000, context="window:1")
    groups, _, (episode,) = play(ExpertPolicy(), settings, groups=1, size=1, length=10_000)
    assert len(groups) == 1
    assert (len(episode.turns), episode.status, episode.episode_return) == (10_000, Status.DONE, 10_000.0)


def test_a_hundred_groups_of_many_members():
    groups, stats, _ = play(None, config(concurrency=16), groups=100, size=16, length=1)
    assert [len(g.trajectories) for g in groups] == [16] * 100
    assert stats.episodes == 1600
    assert len(MADE) <= 16


def test_what_a_rollout_makes_survives_the_store(tiny, tmp_path):
    settings = config(max_new_tokens=6, parse_limit=9, context="window:0", max_turns=6)
    _, _, episodes = play(tiny, settings, groups=3, size=2, length=4, fault="raise", at=3, times=2)
    assert any(t.status.failed for t in episodes) or any(t.attempts > 1 for t in episodes)
    assert any(len(t.segments) > 1 for t in episodes)
    for name in ("t.jsonl", "t.parquet"):
        store.write(tmp_path / name, episodes)
        assert store.read(tmp_path / name) == episodes
    for old in episodes:
        assert type(old.success) is bool
        assert old.from_dict(old.to_dict()) == old


def test_options_reach_the_environment_and_hints_do_not_reach_the_trajectory():
    with rollout(ExpertPolicy(), None, {"split": "train"}) as playing:
        groups = playing.collect(group_tasks(0, 0, 1, 1))
    assert RESETS == [{"split": "train", "expert": True}]
    episode = groups[0].trajectories[0]
    assert episode.info == {"success": True, "score": 3}
    assert "expert" not in str(episode.messages)
    assert [t.action for t in episode.turns] == ["go"] * 3


def test_turns_point_at_what_was_sampled(tiny):
    groups, _, _ = play(tiny, config(max_new_tokens=6, parse_limit=99, context="window:1", max_turns=5), length=0)
    for episode in (t for g in groups for t in g.trajectories):
        spans = [np.arange(t.start, t.stop) for t in episode.turns]
        assert sum(map(len, spans)) == episode.action_tokens
        for turn in episode.turns:
            segment = episode.segments[turn.segment]
            assert segment.mask[turn.start : turn.stop] == [1] * (turn.stop - turn.start)
            assert segment.mask[turn.prompt_start : turn.start] == [0] * (turn.start - turn.prompt_start)
            assert tiny.renderer.decode_reply(segment.ids[turn.start : turn.stop]) == turn.text
            assert turn.policy_s >= 0 <= turn.env_s


# ---- policies without a model ---------------------------------------------------------------------------


def test_the_expert_of_a_lost_game_plays_on(monkeypatch):
    monkeypatch.setattr(
        helpers_envs.Fault, "_info", lambda self: {"admissible_commands": ["wait"], "expert_action": None}
    )
    groups, _, (episode,) = play(ExpertPolicy(), groups=1, size=1)
    assert len(groups) == 1
    assert [t.action for t in episode.turns] == ["wait"] * 3


def test_a_scripted_policy_that_cannot_play_here_says_so():
    with EnvPool("test/NoExpert-v0") as pool:
        with pytest.raises(ConfigError, match="has no expert: its info holds no expert_action"):
            Rollout(pool, ExpertPolicy(), config()).collect(group_tasks(0, 0, 1, 1))
        with pytest.raises(
            ConfigError, match="random policy needs an environment whose info holds admissible_commands"
        ):
            Rollout(pool, RandomPolicy(), config()).collect(group_tasks(0, 0, 1, 1))


def test_an_action_that_the_codec_cannot_write_is_an_error_of_the_policy():
    _, _, (episode,) = play(CannedPolicy(["fly"]), config(codec="choice"), groups=1, size=1)
    assert episode.status is Status.ENGINE_ERROR
    assert "the canned policy wants 'fly', which rollout.codec cannot write" in episode.error


def test_noise_is_a_share_of_random_commands():
    groups, _, _ = play(ExpertPolicy(noise=0.5), config(max_turns=200), groups=2, size=1, length=200)
    first, second = ([t.action for t in g.trajectories[0].turns] for g in groups)
    assert 100 < first.count("go") < 190  # a random command is "go" in a third of the cases
    assert first != second
    with pytest.raises(ConfigError, match=r"expert noise 1\.5"):
        ExpertPolicy(noise=1.5)


# ---- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, v) for n in ("max_turns", "max_new_tokens", "parse_limit", "concurrency") for v in (0, -1)),
        *((n, v) for n in ("step_timeout", "episode_timeout") for v in (0.0, -1.0, math.nan)),
        ("context_limit", 32),
        ("retries", -1),
        ("max_failure_rate", -0.1),
        ("max_failure_rate", 1.1),
        ("max_failure_rate", math.nan),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("codec", "plane"),
        ("context", "windows:3"),
        ("context", "window:-1"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name}|{value}"):
        RolloutConfig(**{name: value})


def test_an_environment_by_module_or_by_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "my_task_7c1.py").write_text(
        "import gymnasium, helpers_envs\n"
        "gymnasium.register('my/Task-v0', entry_point=helpers_envs.Echo, disable_env_checker=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with EnvConfig("my_task_7c1:my/Task-v0", {"rounds": 1}).pool() as pool:
        groups = Rollout(pool, ExpertPolicy(), config()).collect(group_tasks(0, 0, 1, 2))
    assert [t.success for t in groups[0].trajectories] == [True, True]
    for name, message in {
        "no_such_module_7c1:my/Task-v0": "cannot import no_such_module_7c1",
        "my_task_7c1:my/Tusk-v0": "unknown environment 'my_task_7c1:my/Tusk-v0'",
        "agentgym/TextWorldExprss-v0": "did you mean agentgym/TextWorldExpress-v0",
        "agentgym/TextWorldExpress": "did you mean agentgym/TextWorldExpress-v0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            EnvPool(name)
    with pytest.raises(ConfigError, match=r"test/Echo-v0: wrong env.kwargs.*rouns"):
        make_env("test/Echo-v0", {"rouns": 3})
    with pytest.raises(EnvError, match="test/Fault-v0 cannot be made: RuntimeError: no room"):
        EnvConfig(FAULT, {"fault": "constructor"}).pool()


def test_a_missing_engine_is_named(monkeypatch):
    import gymnasium as gym

    gym.register("test/Missing-v0", entry_point="no_such_engine_7c1:Env")
    with pytest.raises(MissingDependency, match="test/Missing-v0 needs no_such_engine_7c1, which is not installed"):
        make_env("test/Missing-v0")
    del gym.registry["test/Missing-v0"]


def test_an_empty_answer_is_an_answer():
    groups, _, (episode,) = play(Mute([]), groups=1, size=1)
    assert len(groups) == 1
    assert (episode.status, episode.action_tokens) == (Status.PARSE_LIMIT, 0)


def test_tasks_of_any_order_come_out_in_groups():
    tasks = group_tasks(0, 0, 4, 3)
    shuffled = [tasks[i] for i in np.random.default_rng(0).permutation(len(tasks))]
    with rollout() as playing:
        groups = playing.collect(shuffled)
    assert [g.id for g in groups] == [f"00000-{g:03d}" for g in range(4)]
    assert all([t.member for t in g.trajectories] == [0, 1, 2] for g in groups)
    assert isinstance(tasks[0], Task)


def test_what_broke_is_counted_for_each_attempt():
    _, stats, _ = play(None, config(retries=3), groups=1, size=2, fault="raise")
    assert stats.errors == {"env_error": 8}
    assert stats.retries == 6
    assert BROKEN[seed_of(0)] == 8
