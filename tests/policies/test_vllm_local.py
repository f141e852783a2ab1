"""vLLM in the trainer's process, in the one environment that has both: that of vLLM, which borrows our packages."""

import os
import site
import subprocess
from pathlib import Path

import pytest

from agentgym.errors import ConfigError
from agentgym.learner.model import prepare
from agentgym.learner.tiny import build_model
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.vllm import VLLMPolicy
from agentgym.renderer import HFTokenizer, Renderer

RUN = """
import site, sys
for folder in {sites!r}:
    site.addsitedir(folder)  # behind vLLM's own packages
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", {file!r}]))
"""


@pytest.mark.vllm
def test_in_this_process(vllm_install):
    script = RUN.format(sites=site.getsitepackages(), file=str(Path(__file__).with_name("in_process_vllm.py")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    top = Path(__file__).parents[2]
    command = [vllm_install.python, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=top, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_is_missing_is_said(tokenizers, tmp_path):
    tokenizer = tokenizers()
    model = prepare(build_model(tokenizer, 0, hidden=16, layers=1, heads=2, positions=64))
    config = DecodeConfig(backend="vllm", in_process=True)
    with pytest.raises(ConfigError, match=r"decode\.in_process: vLLM is not installed beside this package"):
        VLLMPolicy(model, tokenizer, Renderer(HFTokenizer(tokenizer)), config, tmp_path, 64)


@pytest.mark.parametrize("more", [{"servers": 2}, {"urls": ("http://a",)}, {"lora": "adapter"}, {"transfer": "nccl"}])
def test_settings_that_make_no_sense(more):
    with pytest.raises(ConfigError, match=r"decode\.in_process"):
        DecodeConfig(backend="vllm", in_process=True, **more)
    with pytest.raises(ConfigError, match=r"decode\.in_process needs"):
        DecodeConfig(in_process=True)
