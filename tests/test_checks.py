"""Every check finds the environment that breaks its promise, and only that one does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import helpers_broken_envs as broken
import pytest

from agentgym import cli
from agentgym.checks import CHECKS, Failure, check_agent_env
from agentgym.errors import ConfigError, EnvError

PROGRESS = re.compile(r" \d+/\d+(,| ) *\d|^$")
BROKEN = {
    broken.Unseeded: ("gymnasium", "super().reset(seed=seed)"),
    broken.Warns: ("gymnasium", "check_env warns: Official support for the `seed` function is dropped"),
    broken.LongText: ("text", "step 4: the observation of"),
    broken.NoText: ("text", "step 4: the observation is bytes, not text"),
    broken.Infinite: ("text", "step 4: the reward is inf, not a finite number"),
    broken.HalfTruth: ("text", "not two truth values"),
    broken.Opaque: ("info", "info['handle'] cannot be written as JSON"),
    broken.SmallSeeds: ("large_seeds", "reset(seed=2147483648) raised OverflowError"),
    broken.DriftingSeeds: ("large_seeds", "two resets with seed=2147483648 differ: info['score'] is 1 and 2"),
    broken.Moody: ("deterministic", "played again: seed 0, step 4: observation is"),
    broken.Counts: ("deterministic", "played in another instance: seed 0, step 4: observation is"),
    broken.Hashes: ("fresh_process", "another PYTHONHASHSEED: seed 0, reset: observation is"),
    broken.OneGame: ("seeds_differ", "give the same episode: reset does not use its seed"),
    broken.Shared: ("interleaved", "played in turns with another instance: seed 0"),
    broken.Remembers: ("group", "of a fresh instance and of one left in a game differ: observation is"),
    broken.MovesRandom: ("global_rng", "moved the global generator of random"),
    broken.MovesNumpy: ("global_rng", "moved the global generator of numpy.random"),
    broken.MovesTorch: ("global_rng", "moved the global generator of torch"),
    broken.ReadsRandom: ("global_rng", "depends on the seed of a global generator: seed 0, reset"),
    broken.Lenient: ("misuse", "a step before reset was taken as if nothing were wrong"),
    broken.Careless: ("misuse", "a step after the end raised IndexError: list index out of range"),
    broken.Picky: ("odd_actions", "the action '日本語 😀' raised UnicodeEncodeError"),
    broken.Haunted: ("odd_actions", "after odd actions the next game is another one: seed 0, reset"),
    broken.Endless: ("ends", "nonsense did not end the episode within 12 steps (max_steps)"),
    broken.NoExpert: ("expert", "gives no expert_action in info"),
    broken.BadExpert: ("expert", "the expert ended after 12 steps with success=False"),
    broken.GivesUp: ("expert", "the expert stopped after 4 steps with expert_action=None"),
    broken.LowScore: ("expert", "won with a score of 5 of 6"),
    broken.Generous: ("silent", "the action '', repeated, succeeds"),
    broken.Unasked: ("hints", "seed 0, reset: info holds expert_action="),
    broken.Whispers: ("hints", "step 2: observation is"),
    broken.AnswerShown: ("hints", "info['answer'] stands in the first prompt of all 3 seeds"),
    broken.FirstIsRight: ("hints", "in all 15 turns the expert's command is number 1 of admissible_commands"),
    broken.TalkativeExpert: ("hints", "seed 0: message 0 to the model is"),
    broken.LeaksMemory: ("growth", "240 resets took 2"),
    broken.HoardsFiles: ("growth", "240 resets left 240 open files"),
    broken.HoardsThreads: ("growth", "240 resets left 240 threads"),
    broken.HoardsProcesses: ("growth", " processes"),
    broken.LeavesThread: ("close", "after close() of 3 instances there are 3 more threads: lingering"),
    broken.LeavesProcess: ("close", "after close() of 3 instances there are 3 more processes: sleep"),
    broken.LeavesFile: ("close", "after close() of 3 instances there are 3 more temporary files"),
    broken.LeavesOpen: ("close", "after close() of 3 instances there are 3 more open files"),
    broken.ClosesOnce: ("close", "a second close() raised RuntimeError: it is closed already"),
}


@pytest.mark.parametrize("env", BROKEN, ids=lambda env: env.__name__)
def test_a_broken_promise_is_found_and_no_other(env):
    check, message = BROKEN[env]
    report = check_agent_env(env)
    assert not report.passed
    assert [f.check for f in report.failures] == [check], str(report)
    assert message in report.failures[0].message
    assert f"{check:<14} FAILED  " in str(report)


def test_every_check_can_fail():
    assert {check for check, _ in BROKEN.values()} == set(CHECKS)
    assert all(check.__doc__ for check in CHECKS.values())
    page = (Path(__file__).parents[1] / "docs" / "checks.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(CHECKS)


@pytest.mark.parametrize("env", [broken.Good, broken.Documented, broken.AnswerHidden, broken.Loud, "broken/Good-v0"])
def test_a_good_environment_passes_all(env, capfd):
    seen = []
    report = check_agent_env(env, on_check=seen.append)
    assert report.passed, str(report)
    assert report.ran == seen == list(CHECKS)
    assert report.skipped == {}
    assert capfd.readouterr() == ("", "")
    assert str(report).count(" ok\n") == len(CHECKS)


def test_what_says_nothing_is_not_run():
    report = check_agent_env("helpers_broken_envs:broken/Moody-v0", skip=["growth"])
    assert report.skipped.pop("growth") == "asked not to"
    assert report.skipped == dict.fromkeys(
        ("fresh_process", "interleaved", "group", "hints"), "it says nothing while deterministic fails"
    )
    assert set(report.ran) == set(CHECKS) - set(report.skipped) - {"growth"}


def test_functions_arguments_and_what_is_defined_here_are_checked_too():
    class Local(broken.WithArguments):
        pass

    rounds = 3
    for env, kwargs in ((Local, {"rounds": 3}), (lambda: Local(rounds), {})):
        assert check_agent_env(env, kwargs, skip=["growth"]).passed
    with pytest.raises(ConfigError, match=r"wrong env\.kwargs"):
        check_agent_env(Local)
    with pytest.raises(ConfigError, match=r"wrong env\.kwargs"):
        check_agent_env(Local, {"rouns": 3})


def test_an_environment_that_takes_the_process_down_or_hangs_is_a_finding():
    died = "it took the process down (exit code 7: fatal: the engine is gone)"
    assert check_agent_env(broken.Dies).failures == [Failure("odd_actions", died)]
    started = time.monotonic()
    late = check_agent_env(broken.Hangs, timeout=5, skip=["growth"])
    assert late.failures == [Failure("odd_actions", "it did not come to an end within 5 s")]
    assert late.ran[-1] == "close"
    assert time.monotonic() - started < 30


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_agent_env(broken.LeavesProcess, skip=[c for c in CHECKS if c != "close"])
    assert list(tmp_path.iterdir()) == []
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left
    script = """
import os, subprocess
from agentgym import cli
from agentgym.checks import CHECKS, check_agent_env
from helpers_broken_envs import LeavesProcess
check_agent_env(LeavesProcess, skip=[c for c in CHECKS if c != "close"])
print(subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["ps"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("agentgym/Nope-v0",), ConfigError, "unknown environment 'agentgym/Nope-v0'"),
        (("nowhere_7c1:a/B-v0",), ConfigError, "cannot import nowhere_7c1"),
        ((broken.Unmakeable,), EnvError, "cannot be made: RuntimeError: no room"),
        ((3,), ConfigError, "cannot check int"),
        ((broken.Good, None, None, (1,)), ConfigError, "seeds [1]: give two different ones"),
        ((broken.Good, None, None, (1, -1)), ConfigError, "seeds [1, -1]"),
        ((broken.Good, None, None, (1, 2), ["grwth"]), ConfigError, "unknown check 'grwth': did you mean growth"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        check_agent_env(*arguments)
    assert message in str(caught.value)


def test_the_command_says_what_was_found(capsys):
    fast = [part for name in set(CHECKS) - {"text", "deterministic"} for part in ("--skip", name)]
    moody = ["check", "helpers_broken_envs:broken/Moody-v0", *fast]
    assert cli.main(moody) == 1
    out, err = capsys.readouterr()
    assert "deterministic  FAILED  the same seed and actions, played again: seed 0, step 4" in out
    assert "text           ok\n" in out
    assert "growth         not run: asked not to\n" in out
    assert "helpers_broken_envs:broken/Moody-v0: 2 checks in" in out
    assert all(PROGRESS.search(line) for line in err.splitlines())
    assert cli.main([*moody, "--json", "--seeds", "2"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["passed"], [f["check"] for f in found["failures"]], err) == (False, ["deterministic"], "")
    assert cli.main(["check", "helpers_broken_envs:broken/Good-v0", *fast, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["failures"], sorted(found["ran"])) == (True, [], ["deterministic", "text"])


def test_the_command_takes_arguments_and_options(capsys):
    fast = [part for name in set(CHECKS) - {"expert"} for part in ("--skip", name)]
    rounds = ["check", "helpers_broken_envs:broken/WithArguments-v0", *fast, "--json", "--set", "env.kwargs.rounds=2"]
    assert cli.main(rounds) == 0
    assert json.loads(capsys.readouterr().out)["kwargs"] == {"rounds": 2}
    assert cli.main([*rounds, "env.options.rounds=30"]) == 1
    assert "after 12 steps with success=False" in json.loads(capsys.readouterr().out)["failures"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ID is missing: which environment?"),
        (["broken/Goood-v0"], "unknown environment 'broken/Goood-v0'"),
        (["broken/Good-v0", "--seeds", "1"], "--seeds 1: it must be at least 2"),
        (["broken/Good-v0", "--skip", "txt"], "unknown check 'txt': did you mean text"),
        (["broken/Good-v0", "--write"], "--write is for golden transcripts"),
        (["broken/Good-v0", "--set", "rollout.codec=plain"], "unknown config key 'rollout'"),
        (["broken/Good-v0", "--set", "env.kwargs.rouns=1"], "rouns"),
        (["broken/Good-v0", "--golden", "/proc/none", "--write"], "/proc/none"),
        (["broken/Good-v0", "--golden", "/nowhere"], "no golden transcript /nowhere/Good-v0.txt"),
    ],
)
def test_mistakes_on_the_command_line(capsys, arguments, message):
    assert cli.main(["check", *arguments]) in (1, 2)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not PROGRESS.search(line)]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("agentgym: error: ")
    assert message in lines[0]
