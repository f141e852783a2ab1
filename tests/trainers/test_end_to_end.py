"""The real thing, small: expert, warm start, reinforcement learning and report on a real game, from the shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml

from agentgym import store
from agentgym.env_worker import make_env
from agentgym.replay import replay
from agentgym.types import Status

pytestmark = pytest.mark.java

PARAMS = "numLocations=3,maxDistanceApart=1,maxDistractorItemsPerLocation=0,includeDoors=0"
ENV = {
    "id": "agentgym/TextWorldExpress-v0",
    "kwargs": {"game": "mapreader", "game_params": PARAMS, "max_steps": 12},
}
ROLLOUT = {"max_turns": 8, "max_new_tokens": 16, "context_limit": 1500}
SFT = {
    "env": ENV,
    "rollout": ROLLOUT,
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 512, "threads": 1},
    "demonstrations": 24,
    "epochs": 2,
    "batch_size": 8,
    "optim": {"lr": 3e-3},
    "eval": {"final_episodes": 8},
}
GRPO = {
    "env": ENV,
    "rollout": ROLLOUT,
    "model": {"threads": 1},
    "groups": 2,
    "group_size": 3,
    "eval": {"final_episodes": 8},
    "algo": {"kl_coef": 0.01},
}
MARK = f"mark-{uuid.uuid4().hex}"


def start(*arguments):
    environment = {**os.environ, "AGENTGYM_TEST_MARK": MARK, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "agentgym.cli", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert left() == []
    return out


def left():
    """Command lines of the processes that our runs started and left behind."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if MARK.encode() in environ.read_bytes():
                found.append(environ.with_name("cmdline").read_bytes().replace(b"\0", b" ")[:200])
        except OSError:
            continue
    return found


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An SFT run, and a GRPO run that was interrupted and gone on with."""
    folder = tmp_path_factory.mktemp("runs")
    for name, values in (
        ("sft", SFT),
        ("grpo", {**GRPO, "model": {"path": str(folder / "sft" / "final"), "threads": 1}}),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    out = finish(start("train", "sft", "--config", folder / "sft.yaml", "--out", folder / "sft", "--seed", 3))
    assert f"model:  {folder}/sft/final" in out
    arguments = ["train", "grpo", "--config", folder / "grpo.yaml", "--out", folder / "grpo", "--seed", 3]
    process = start(*arguments, "--set", "steps=100")
    deadline = time.monotonic() + 240
    metrics = folder / "grpo" / "metrics.jsonl"
    while not (metrics.exists() and '"reward/mean"' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert any(b"java" in command for command in left())
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    reached = rows(folder / "grpo")[-1]["step"]
    out = finish(start(*arguments, "--set", f"steps={reached + 1}", "--resume"))
    assert " before: success" in out
    assert "  after: success" in out
    return folder, reached


def test_the_run_folders_are_complete(runs):
    folder, reached = runs
    common = {"config.yaml", "versions.json", "metrics.jsonl", "evaluation.json", "learning_curve.png", "report.html"}
    common |= {"trajectories", "checkpoints", "final", "tokens.json"}
    for name in ("sft", "grpo"):
        run = folder / name
        assert common <= {p.name for p in run.iterdir()}
        assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
        assert yaml.safe_load((run / "config.yaml").read_text())["env"]["kwargs"]["game_params"] == PARAMS
        assert {"python", "torch", "gymnasium", "git", "argv"} <= json.loads((run / "versions.json").read_text()).keys()
        assert not list(run.glob("*.tmp")) + list(run.glob("checkpoints/.*"))
    assert yaml.safe_load((folder / "grpo" / "config.yaml").read_text())["steps"] == reached + 1
    assert set(json.loads((folder / "sft" / "evaluation.json").read_text())) == {"after"}
    found = json.loads((folder / "grpo" / "evaluation.json").read_text())
    assert set(found) == {"before", "after"}
    for result in found.values():
        assert (result["episodes"], result["failed"]) == (8, 0)
        assert {"success", "return", "turns", "tokens"} <= result.keys()


def test_the_metrics_are_the_promised_ones(runs):
    folder, reached = runs
    lines = rows(folder / "grpo")
    steps = [row for row in lines if "reward/mean" in row]
    assert [row["step"] for row in steps] == list(range(1, reached + 2))
    assert [row["step"] for row in lines if "eval/success" in row] == [0, reached + 1]
    always = {"reward/mean", "episode/success", "episode/turns", "tokens/action", "group/zero_std_frac"}
    always |= {"time/rollout", "time/update", "perf/action_tok_s"}
    learned = {"optim/loss", "optim/grad_norm", "optim/lr", "policy/entropy", "policy/kl_ref", "policy/clip_frac"}
    for row in steps:
        assert always | learned | {"policy/mismatch_kl"} <= row.keys()
        assert abs(row["policy/mismatch_kl"]) < 1e-5
        assert row["policy/clip_frac"] == 0.0
        assert row["policy/kl_ref"] >= 0.0
        assert row["rollout/dropped_groups"] == 0.0
    assert steps[0]["policy/kl_ref"] < 1e-6
    lines = [row for row in rows(folder / "sft") if "sft/nll" in row]
    assert [row["step"] for row in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["sft/nll"] < lines[0]["sft/nll"]


def test_the_trajectories_can_be_read_and_replayed_in_the_real_game(runs):
    folder, reached = runs
    files = {p.stem: store.read(p) for p in (folder / "grpo" / "trajectories").glob("*.jsonl")}
    assert {"eval_before", "eval_after", "step_00001"} <= files.keys()
    assert [t.member for t in files["step_00001"]] == [0, 1, 2, 0, 1, 2]
    assert len({t.turns[0].observation for t in files["step_00001"][:3]}) == 1
    assert not any(t.status.failed for found in files.values() for t in found)
    for name, expected in {"eval_before": 0, "step_00001": 0, "eval_after": reached + 1}.items():
        assert {v for t in files[name] for s in t.segments for v in s.versions} - {-1} == {expected}
    demos = store.read(folder / "sft" / "demonstrations.jsonl")
    assert len(demos) == 24
    assert all(t.success and t.status is Status.DONE for t in demos)
    env = make_env(ENV["id"], ENV["kwargs"])
    try:
        for trajectory in [*demos[:3], *files["step_00001"][:2]]:
            assert replay(trajectory, env, {"split": "train"}) == []
        for trajectory in files["eval_after"][:2]:
            assert replay(trajectory, env, {"split": "test"}) == []
    finally:
        env.close()


def test_the_report_can_be_written_again(runs):
    folder, _ = runs
    report = folder / "grpo" / "report.html"
    report.unlink()
    out = finish(start("view", folder / "grpo"))
    assert out.strip() == str(report)
    page = report.read_text()
    assert page.count('type="application/json"') > 10
    assert "policy/kl_ref" in page
