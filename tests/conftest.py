"""Shared by all tests: one torch thread, tiny tokenizers in the style of real models, and tiny models of real kinds."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["ALFWORLD_DATA"] = os.path.join(os.path.dirname(__file__), "data", "alfworld_sample.jsonl.xz")

import helpers_docker
import pytest
import torch
from agentgym.sandboxes import docker, image, local
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentgym.errors import ConfigError, MissingDependency
from agentgym.learner.model import prepare
from agentgym.learner.tiny import CHAT_TEMPLATE, train_tokenizer
from agentgym.policies.vllm_server import find_install
from agentgym.renderer import ByteTokenizer, HFTokenizer, Renderer

torch.set_num_threads(1)

# The examples are the same in every run; `--hypothesis-profile=explore` looks for new ones.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=_SLOW)
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=_SLOW)
settings.load_profile("ci")

CORPUS = [
    "You are in the kitchen. There is a red apple on the table, and a door to the north.",
    "take apple from table\ngo north\nopen the door\nlook around\n<action>take apple</action>",
    "Commands:\n1. go north\n2. take apple\n\n  You see:\tnothing   here. It's dark; 12 rooms, 345 doors.",
]

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3 = """
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last_query %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = '<|begin_of_text|>' + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_STYLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # name: template, special tokens, added tokens that are not special
    "tiny": (CHAT_TEMPLATE, (), ()),
    "smollm2": (SMOLLM2, _CHATML, ()),
    "qwen3": (QWEN3, _CHATML, ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    "llama3": (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
}
STYLES = (*_STYLES, "phi3", "bytes")
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def make_tokenizer(template: str | None = CHAT_TEMPLATE, special: tuple[str, ...] = (), added: tuple[str, ...] = ()):
    """A small byte-level BPE tokenizer with this chat template."""
    tokenizer = train_tokenizer(CORPUS, 400)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    tokenizer.chat_template = template
    return tokenizer


def make_sentencepiece(template: str):
    """A tokenizer as Phi-3 has it: a text starts with a space, special tokens swallow the whitespace after them."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = metaspace
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    names = ["<pad>", *(f"<0x{b:02X}>" for b in range(256)), *learned["vocab"]]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = metaspace
    replace = decoders.Replace("\u2581", " ")
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    names = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    fast.add_tokens([AddedToken(t, special=True, normalized=False, rstrip=True) for t in names], special_tokens=True)
    fast.chat_template = template
    return fast


@functools.cache
def make_renderer(style: str) -> Renderer:
    """The renderer of one of `STYLES`."""
    if style == "bytes":
        return Renderer(ByteTokenizer())
    if style == "phi3":
        return Renderer(HFTokenizer(make_sentencepiece(PHI3)))
    if style == "phi3 without thoughts":
        earlier = "message['content'].split('</think>')[-1]"
        return Renderer(HFTokenizer(make_sentencepiece(PHI3.replace("message['content']", earlier))))
    return Renderer(HFTokenizer(make_tokenizer(*_STYLES[style])))


_KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),
}
KINDS = tuple(_KINDS)


def make_model(
    kind: str = "llama",
    vocab_size: int = 512,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    ready: bool = True,
    **changes,
):
    """A model of two layers with grouped queries, and weights large enough that every part of it matters.

    ``ready`` switches it to this package's attention; otherwise it is what transformers makes of it.
    """
    config, architecture, own = _KINDS[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    model = architecture(config(vocab_size=vocab_size, **{**sizes, **heads, **ids, **own, **changes})).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.18 * noise)
    if dtype == torch.float64:
        for module in (m for m in model.modules() if "RMSNorm" in type(m).__name__):
            module.forward = functools.partial(_norm, module)
    return prepare(model) if ready else model


def _norm(module, hidden):
    """The norm in the model's own precision: transformers computes it in float32 always."""
    variance = hidden.square().mean(-1, keepdim=True)
    return module.weight * hidden * (variance + module.variance_epsilon).rsqrt()


@pytest.fixture(scope="session")
def renderers():
    """Renderer by style."""
    return make_renderer


@pytest.fixture(scope="session", name="models")
def models_fixture():
    """Model factory."""
    return make_model


@pytest.fixture(scope="session", name="tokenizers")
def tokenizers_fixture():
    """Tokenizer factory."""
    return make_tokenizer


@pytest.fixture(scope="session", params=STYLES)
def renderer(request):
    """The renderer of each style in turn."""
    return make_renderer(request.param)


def _cannot(reason: str):
    """Skip, or fail where every test must run."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def vllm_install():
    """An environment with vLLM; `make test` may still be setting it up."""
    own = Path(__file__).parents[1] / ".venv-vllm"
    deadline = time.monotonic() + 1200
    while own.exists() and not (own / "stamp").exists() and time.monotonic() < deadline:
        time.sleep(1)
    try:
        return find_install()
    except ConfigError as error:
        return _cannot(str(error))


@pytest.fixture(scope="session")
def chromium():
    """Path of a browser."""
    return shutil.which("chromium") or _cannot("chromium is not on the PATH")


@pytest.fixture(scope="session")
def headless_shell():
    """Path of the browser without windows, which MiniWoB takes first."""
    return shutil.which("chromium-headless-shell") or _cannot("chromium-headless-shell is not on the PATH")


@pytest.fixture(scope="session")
def docker_host():
    """``DOCKER_HOST`` of a daemon with both sandbox images: the one that answers, or a private one for this session."""
    with contextlib.ExitStack() as stack:
        if docker.available():
            stack.enter_context(_private_daemon())
        _load("base", "data")
        yield os.environ.get("DOCKER_HOST", "")


@pytest.fixture
def docker_daemon():
    """A private daemon of the test's own, to be killed; it has the image ``base``."""
    with _private_daemon() as daemon:
        _load("base")
        yield daemon


@contextlib.contextmanager
def _private_daemon():
    if reason := helpers_docker.why_not():
        _cannot(reason)
    daemon = helpers_docker.Daemon()
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv("DOCKER_HOST", daemon.host)
            try:
                daemon.start()
            except subprocess.CalledProcessError as error:
                _cannot(f"no Docker daemon can be started: {error.stderr.strip()}")
            yield daemon
        finally:
            daemon.close()


def _load(*names: str):
    with docker.client() as api:
        _images(lambda name: image.load(name, api), names)


@pytest.fixture(scope="session")
def bubblewrap():
    """The path of bubblewrap; both root file systems are there."""
    if reason := local.available():
        _cannot(reason)
    _images(image.build)
    return shutil.which("bwrap")


def _images(make, names=("base", "data")):
    try:
        for name in names:
            make(name)
    except MissingDependency as error:
        _cannot(str(error))
