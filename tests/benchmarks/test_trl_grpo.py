"""The comparison with TRL: both sides show the model the same tokens and compute the same loss."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from agentgym.actions import ToolCall
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.types import Message

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "trl_grpo.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("trl_grpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tokenizer(benchmark, tokenizers):
    return tokenizers(benchmark.chat_template(), ("<|im_start|>", "<|im_end|>"))


def test_the_template_shows_observations_as_answers_of_the_tool(tokenizer):
    renderer = Renderer(HFTokenizer(tokenizer))
    call = ToolCall().write("take knife", ())
    roles = ("system", "user", "assistant", "user")
    contents = ("Play.", "You see a knife.", call, "Taken.")
    text = renderer.tokenizer.render([Message(role=r, content=c) for r, c in zip(roles, contents, strict=True)])
    assert renderer.close == "<|im_end|>"
    assert text.count("<tools>\n{") == 1
    assert '"name": "act"' in text
    assert "<|im_start|>user\nYou see a knife.<|im_end|>\n" in text
    assert text.endswith(
        f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>user\n<tool_response>\nTaken.\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.java
def test_the_same_prompts_and_the_same_loss(benchmark, tokenizer, tmp_path):
    try:
        python = benchmark.trl_python()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"TRL cannot be installed: {error}")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = {"pad_token_id": end, "bos_token_id": None, "eos_token_id": end}
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    found = {}
    for side, interpreter in (("trl", python), ("ours", sys.executable)):
        command = [str(interpreter), str(SCRIPT), "--side", side, "--model", str(tmp_path / "m"), "--steps", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found[side] = json.loads((tmp_path / f"{side}.json").read_text())
    trl, ours = found["trl"], found["ours"]
    assert ours["prompts_equal"]
    assert len(trl["steps"]) == len(ours["steps"]) == 2
    for key in ("loss", "grad_norm"):
        assert trl["check"][key] != 0
        assert ours["check"][key] == pytest.approx(trl["check"][key], rel=1e-4)
