"""Malformed input of every kind: one line on standard error that names it, and what was saved before is untouched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import run_folder
import yaml
from agentgym.trainers import grpo, sft
from helpers_policies import tiny_model

from agentgym import actions, cli, config, store
from agentgym.errors import ConfigError

TESTS = Path(__file__).parent
PROGRESS = re.compile(r" \d+/\d+(,| ) *\d|^$")
ECHO = "helpers_envs:test/Echo-v0"
TINY = ["model.hidden=16", "model.layers=1", "model.heads=2", "model.vocab_size=280", "rollout.max_new_tokens=8"]
QUICK = [*TINY, f"env.id={ECHO}", "eval.final_episodes=2", "demonstrations=6", "epochs=2", "rollout.context_limit=300"]


@pytest.fixture
def run(capfd, monkeypatch):
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


def check_refused(result, *named):
    """One line that names what is wrong, and no output."""
    code, out, err = result
    lines = [line for line in err.splitlines() if not PROGRESS.search(line)]
    assert code in (1, 2), err
    assert len(lines) == 1, err
    assert lines[0].startswith("agentgym: error: ")
    for name in named:
        assert name in lines[0]
    assert len(lines[0]) < 1000
    assert out == ""


def snapshot(folder):
    """Every file below a folder and what it holds."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that is in order."""
    folder = tmp_path_factory.mktemp("models") / "good"
    weights, tokenizer = tiny_model(hidden=16, layers=1)
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a small SFT run."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    cfg = sft.make_config(config.settings([*QUICK, "save_every=1"]))
    sft.main(cfg, folder, False)
    return folder


# ---- settings -------------------------------------------------------------------------------------------


def leaves(values, where=""):
    """Path and default of every setting."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


DEFAULTS = {
    name: dict(leaves(yaml.safe_load(config.dump(trainer.make_config({})))))
    for name, trainer in (("grpo", grpo), ("sft", sft))
}
SETTINGS = [("grpo", key) for key in DEFAULTS["grpo"]] + [
    ("sft", k) for k in DEFAULTS["sft"] if k not in DEFAULTS["grpo"]
]
NUMBERS = [
    (a, k) for a, k in SETTINGS if isinstance(DEFAULTS[a][k], int | float) and not isinstance(DEFAULTS[a][k], bool)
]
FREE = {"env.options.split", "env.eval_options.split"}


@pytest.mark.parametrize(("algorithm", "key"), [s for s in SETTINGS if s[1] not in FREE])
def test_every_setting_refuses_a_value_of_another_kind(run, algorithm, key):
    wrong = "[[]]" if isinstance(DEFAULTS[algorithm][key], dict) else "{odd: thing}"
    check_refused(run("train", algorithm, "--show-config", "--set", f"{key}={wrong}"), key)


@pytest.mark.parametrize(("algorithm", "key"), NUMBERS)
def test_every_number_has_its_limits(run, algorithm, key):
    also = ["algo.overlong_length=9"] if key == "algo.overlong_buffer" else []
    check_refused(run("train", algorithm, "--show-config", "--set", f"{key}=-1", *also), key)


@pytest.mark.parametrize(("algorithm", "key"), [n for n in NUMBERS if isinstance(DEFAULTS[n[0]][n[1]], float)])
def test_every_fraction_refuses_infinity_or_means_no_limit(run, algorithm, key):
    result = run("train", algorithm, "--show-config", "--set", f"{key}=.inf")
    if key in ("rollout.step_timeout", "rollout.episode_timeout"):
        assert result[0] == 0
    else:
        check_refused(result, key)


SETTING_TEXTS = {
    "rollout.codec=": "rollout.codec",
    "rollout.codec=null": "rollout.codec",
    "rollout.codec=[plain]": "rollout.codec",
    "rollout.codec=Plain": "'Plain'",
    "rollout.context=window": "'window'",
    "rollout.context=window:": "rollout.context",
    "rollout.context=window:-1": "'window:-1'",
    "rollout.context=window:1.5": "'window:1.5'",
    "rollout.context=window:99999999999": "'window:99999999999'",
    "rollout.context=append:3": "'append:3'",
    "optim.betas=[0.9]": "optim.betas",
    "optim.betas=[0.9, 0.9, 0.9]": "optim.betas",
    "optim.betas=[0.9, 1.0]": "optim.betas",
    "optim.betas=[-0.1, 0.9]": "optim.betas",
    "optim.betas=[a, b]": "optim.betas",
    "optim.betas=0.9": "optim.betas",
    "optim.lr=1e-4x": "optim.lr",
    "optim.lr=0x": "optim.lr",
    "optim.lr=1,5": "optim.lr",
    "optim.lr=1e400": "optim.lr",
    "optim..lr=1": "optim.",
    ".optim.lr=1": "config key",
    "optim.lr.=1": "optim.lr",
    "optim.=1": "optim.",
    "optim lr=1": "optim lr",
    "OPTIM.LR=1": "OPTIM",
    "seed=0o8": "seed",
    "seed=1e3": "seed",
    "seed=" + "9" * 5000: "--set seed",
    "seed=!!python/object/apply:os.getpid []": "--set seed",
    "seed=&a [*a]": "--set seed",
    "seed=1: 2: 3": "--set seed",
    "seed=\x00": "--set seed",
    "preset=": "preset",
    "preset={grpo: 1}": "preset",
    "algo.center=mean": "algo.center",
    "algo.ratio=tokens": "algo.ratio",
    "algo.dual_clip=1": "algo.dual_clip",
    "algo.dual_clip=yes please": "algo.dual_clip",
    "algo.clip_low=1": "algo.clip_low",
    "algo.resample=1": "algo.resample",
    "model.dtype=32": "model.dtype",
    "model.path=[a, b]": "model.path",
    "model.heads=3": "model.h",
    "env.kwargs=game=twc": "env.kwargs",
    "env.id=7": "env.id",
    "env.options=[split]": "env.options",
    "env.options={1: 2}": "env.options",
    "eval.seed=first": "eval.seed",
    "rollout={max_turns: many}": "rollout.max_turns",
    "rollout.max_turns={}": "rollout.max_turns",
}


@pytest.mark.parametrize("text", SETTING_TEXTS, ids=lambda text: ascii(text[:40]))
def test_settings(run, text):
    check_refused(run("train", "grpo", "--show-config", "--set", text), SETTING_TEXTS[text])


FILES = {
    "utf-16": ("seed: 0\n".encode("utf-16"), "cannot read the config"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot read the config"),
    "zeros": (bytes(100), "is not valid YAML"),
    "cut in the middle": (b"optim:\n  lr: 1.0e-4\n  betas: [0.9, 0.", "is not valid YAML"),
    "cut in a string": (b'model:\n  path: "runs/sft', "is not valid YAML: line 2"),
    "tabs": (b"optim:\n\tlr: 1\n", "line 2"),
    "wrong indentation": (b"optim:\n    lr: 1\n  betas: [1]\n", "line 3"),
    "json with a comma too many": (b'{"seed": 0, "optim": {"lr": 1},, }', "is not valid YAML"),
    "a number": (b"42", "expected settings"),
    "a word": (b"grpo", "expected settings"),
    "a list": (b"- seed: 0\n", "expected settings"),
    "a page": (b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n", "is not valid YAML"),
    "a pointer to a large file": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
        "expected settings",
    ),
    "two documents": (b"seed: 0\n---\nseed: 1\n", "is not valid YAML"),
    "a key twice": (b"optim: {lr: 1.0e-4}\nseed: 0\noptim: {lr: 1.0e-3}\n", "optim stands twice"),
    "code": (b"seed: !!python/object/apply:os.system ['touch owned']\n", "is not valid YAML"),
    "a merge of nothing": (b"<<: 3\n", "is not valid YAML"),
    "an alias without an anchor": (b"optim: *base\n", "undefined alias"),
    "itself": (b"env: &a {kwargs: *a}\n", "recursive"),
    "deep": (b"env: " + b"[" * 5000, "is not valid YAML"),
    "null sections": (b"optim:\nrollout:\n", "optim: expected settings"),
    "a list for a section": (b"optim:\n  - lr: 1\n", "optim: expected settings"),
    "keys with dots": (b"optim.lr: 1.0\n", "optim.lr"),
    "a set": (b"? seed\n? steps\n", "seed"),
    "dates": (b"seed: 2026-01-01\n", "seed: expected int"),
    "binary": (b"seed: !!binary aGVsbG8=\n", "seed: expected int"),
    "a misspelt section": (b"rolout: {max_turns: 3}\n", "unknown config key 'rolout': did you mean rollout"),
    "settings of another algorithm": (b"demonstrations: 3\n", "unknown config key 'demonstrations'"),
    "environment variables": (b"seed: ${SEED}\n", "seed: expected int, got '${SEED}'"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_settings(run, tmp_path, name):
    data, named = FILES[name]
    file = tmp_path / "settings.yaml"
    file.write_bytes(data)
    check_refused(run("train", "grpo", "--config", file, "--out", tmp_path / "out"), named)
    if named.startswith(("cannot read", "is not valid", "expected settings", "line")):
        base = ["eval", "--env", ECHO, "--policy", "expert", "--out", tmp_path / "out"]
        check_refused(run(*base, "--config", file), named)
    assert not (tmp_path / "out").exists()
    assert not Path("owned").exists()


def test_paths_of_settings(run, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    for path in (
        "",
        tmp_path,
        tmp_path / "loop",
        tmp_path / "gone",
        f"{tmp_path}/a\0b",
        "x" * 300,
        tmp_path / "a.yaml/b",
    ):
        check_refused(run("train", "grpo", "--config", path), "cannot read the config")


# ---- environments, policies, arguments ------------------------------------------------------------------

IDS = {
    "": "unknown environment",
    " ": "unknown environment ' '",
    "agentgym/": "unknown environment 'agentgym/'",
    "TextWorldExpress-v0": "did you mean agentgym/TextWorldExpress-v0",
    "agentgym/textworldexpress-v0": "unknown environment",
    "agentgym/TextWorldExpress": "did you mean agentgym/TextWorldExpress-v0",
    "agentgym/TextWorldExpress-v9": "did you mean agentgym/TextWorldExpress-v0",
    "agentgym/TextWorldExpress-v0 ": "unknown environment 'agentgym/TextWorldExpress-v0 '",
    "agentgym\\TextWorldExpress-v0": "unknown environment",
    "../envs/textworld.py": "unknown environment",
    "a\nb": "unknown environment",
    "日本-v0": "日本-v0",
    "x" * 300: "x" * 100,
    ":": "environment ':'",
    ":agentgym/TextWorld-Coin-v0x": "unknown environment",
    "json:": "unknown environment 'json:'",
    "json:a/B-v0": "unknown environment 'json:a/B-v0'",
    "json::a/B-v0": "json:",
    "nowhere_7c1.deep:a/B-v0": "cannot import nowhere_7c1.deep",
    "a b:c/D-v0": "cannot import a b",
    "wrong_import:a/B-v0": "cannot import wrong_import",
    "wrong_entry:wrong/Entry-v0": "wrong/Entry-v0",
    "wrong_entry:wrong/Class-v0": "wrong/Class-v0",
    "wrong_entry:wrong/NoEnv-v0": "wrong/NoEnv-v0",
}
MODULES = {
    "wrong_import": "import nowhere_7c1\n",
    "wrong_entry": "import gymnasium as gym\n"
    "gym.register('wrong/Entry-v0', entry_point='nowhere_7c1:Env')\n"
    "gym.register('wrong/Class-v0', entry_point='json:Env')\n"
    "gym.register('wrong/NoEnv-v0', entry_point='json:JSONDecoder')\n",
}


@pytest.mark.filterwarnings("ignore:.*Overriding environment wrong/")
@pytest.mark.parametrize("name", IDS, ids=lambda name: ascii(name[:40]))
@pytest.mark.parametrize("command", [["eval", "--policy", "random", "--env"], ["play"], ["check"]], ids=lambda c: c[0])
def test_names_of_environments(run, tmp_path, monkeypatch, command, name):
    for module, text in MODULES.items():
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    check_refused(run(*command, name), IDS[name])


BAD_MODULES = {
    "wrong_syntax": "def f(:\n",
    "wrong_raise": "raise RuntimeError('no licence\\nfor this')\n",
    "wrong_exit": "raise SystemExit(0)\n",
    ".relative": "",
    "..": "",
}


@pytest.mark.parametrize("module", BAD_MODULES)
def test_modules_that_break_when_they_are_imported(run, tmp_path, monkeypatch, module):
    if module.isidentifier():
        (tmp_path / f"{module}.py").write_text(BAD_MODULES[module])
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (["eval", "--policy", "random", "--env"], ["play"], ["check"]):
        check_refused(run(*command, f"{module}:a/B-v0"), f"cannot import {module}")


EXPRESS = "agentgym/TextWorldExpress-v0"
COIN = "agentgym/TextWorld-Coin-v0"
ENVIRONMENT_SETTINGS = {
    (EXPRESS, "env.kwargs.game=Coin"): "unknown game 'Coin'",
    (EXPRESS, "env.kwargs.game=3"): "game",
    (EXPRESS, "env.kwargs.game=[coin]"): "game",
    (EXPRESS, "env.kwargs.game=null"): "game",
    (EXPRESS, "env.kwargs.gmae=coin"): "gmae",
    (EXPRESS, "env.kwargs.game_params=5"): "game_params",
    (EXPRESS, "env.kwargs.game_params=[numLocations]"): "game_params",
    (EXPRESS, "env.kwargs.game_params=numLocations"): "numLocations",
    (EXPRESS, "env.kwargs.game_params=numLocations=many"): "numLocations",
    (EXPRESS, "env.kwargs.game_params={numLocations: []}"): "numLocations",
    (EXPRESS, "env.kwargs.game_params={numLocation: 3}"): "numLocation",
    (EXPRESS, "env.kwargs.game_params={numLocations: 1e9}"): "numLocations",
    (EXPRESS, "env.kwargs.game_params={numLocations: -1}"): "Number of locations",
    (EXPRESS, "env.kwargs.game_params={includeDoors: 2}"): "includeDoors",
    (EXPRESS, "env.kwargs.game_params={1: 2}"): "1",
    (EXPRESS, "env.kwargs.split=eval"): "unknown split 'eval'",
    (EXPRESS, "env.kwargs.split=1"): "split",
    (EXPRESS, "env.kwargs.split=[train]"): "split",
    (EXPRESS, "env.kwargs.max_steps=0"): "max_steps",
    (EXPRESS, "env.kwargs.max_steps=-5"): "max_steps",
    (EXPRESS, "env.kwargs.max_steps=many"): "max_steps",
    (EXPRESS, "env.kwargs.max_steps=null"): "max_steps",
    (EXPRESS, "env.kwargs.render_mode=human"): "human",
    (EXPRESS, "env.options.splt=test"): "splt",
    (EXPRESS, "env.options.split=eval"): "eval",
    (EXPRESS, "env.options.split=[test]"): "split",
    (EXPRESS, "env.options.game_params=3"): "game_params",
    (COIN, "env.kwargs.level=0"): "level",
    (COIN, "env.kwargs.level=five"): "level",
    (COIN, "env.kwargs.level=1.5"): "level",
    (COIN, "env.kwargs.level=[5]"): "level",
    (COIN, "env.kwargs.level=null"): "level",
    (COIN, "env.kwargs.levle=5"): "levle",
    (COIN, "env.kwargs.directions=2"): "directions",
    (COIN, "env.kwargs.n_games=0"): "n_games",
    (COIN, "env.kwargs.n_games=many"): "n_games",
    (COIN, "env.kwargs.n_games=1.5"): "n_games",
    (COIN, "env.kwargs.challenge=chess"): "unknown challenge 'chess'",
    (COIN, "env.kwargs.challenge=[coin]"): "challenge",
    (COIN, "env.kwargs.split=[train]"): "split",
    (COIN, "env.kwargs.max_steps=many"): "max_steps",
    (COIN, "env.options.level=0"): "level",
    (COIN, "env.options.split=eval"): "eval",
    (COIN, "env.options.split={a: 1}"): "split",
    (COIN, "env.options.expertt=1"): "expertt",
    (ECHO, "env.kwargs=3"): "env.kwargs",
    (ECHO, "env.options=3"): "env.options",
    (ECHO, "rollout.max_turns=0"): "rollout.max_turns",
    (ECHO, "optim.lr=1"): "unknown config key 'optim'",
}


@pytest.mark.parametrize(("env", "text"), ENVIRONMENT_SETTINGS, ids=lambda x: ascii(x[-40:]))
def test_arguments_and_options_of_environments(run, tmp_path, monkeypatch, env, text):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path / "cache"))
    named = ENVIRONMENT_SETTINGS[env, text]
    check_refused(run("play", env, "--policy", "random", "--set", text), named)
    assert not (tmp_path / "cache").exists()


POLICIES = {
    "": "unknown policy ''",
    " ": "unknown policy ' '",
    ":": "unknown policy ':'",
    "expert ": "did you mean expert",
    "Expert": "did you mean expert",
    "expert:0.5": "unknown policy 'expert:0.5'",
    "random:7": "unknown policy 'random:7'",
    "rnd": "did you mean random",
    "canned": "canned",
    "canned:": "canned",
    "canned:;;;": "canned",
    "hf": "hf",
    "hf:": "hf",
    "hf: ": "cannot load the model ' '",
    "hf:.": "no model in .",
    "hf:/": "no model in /",
    "hf:/dev/null": "no model in /dev/null",
    "hf:~": "no model in ~",
    "hf:a/b/c/d": "no model in a/b/c/d",
    "hf:a\x00b": "cannot load the model",
    "hf:no such model": "no such model",
    "hf:../../x": "no model in ../../x",
    "HF:x": "unknown policy 'HF:x'",
    "sglang:x": "unknown policy 'sglang:x'",
    "http://127.0.0.1:1/v1": "unknown policy 'http://127.0.0.1:1/v1'",
}


@pytest.mark.parametrize("policy", POLICIES, ids=ascii)
def test_policies(run, policy):
    for command in (["eval", "--env"], ["play"]):
        check_refused(run(*command, ECHO, "--policy", policy), POLICIES[policy])


ARGUMENTS = {
    ("",): "''",
    ("-x",): "-x",
    ("--",): "",
    ("Train", "grpo"): "'Train'",
    ("train", "grpo", "sft"): "sft",
    ("train", "GRPO"): "unknown algorithm 'GRPO'",
    ("train", "grpo", "--seed"): "--seed",
    ("train", "grpo", "--seed", "1.0"): "--seed",
    ("train", "grpo", "--seed", ""): "--seed",
    ("train", "grpo", "--seed=-1", "--show-config"): "seed is -1",
    ("train", "grpo", "--resume=yes"): "--resume",
    ("train", "grpo", "--show-config", "--out"): "--out",
    ("train", "grpo", "--out", ""): "--out DIR is missing",
    ("train", "grpo", "--lr", "1e-4"): "--lr",
    ("eval", ECHO): "--env",
    ("eval", "--env", ECHO, "--policy", "expert", "--episodes", "1e3"): "--episodes",
    ("eval", "--env", ECHO, "--policy", "expert", "--episodes", "-1"): "--episodes -1",
    ("eval", "--env", ECHO, "--policy", "expert", "--out", "/dev/null"): "/dev/null",
    ("eval", "--env", ECHO, "--policy", "expert", "extra"): "extra",
    ("view",): "DIR",
    ("view", ""): "not a complete run folder",
    ("view", "a", "b"): "b",
    ("view", "/dev/null"): "no run folder /dev/null",
    ("view", "a\x00b"): "a",
    ("play",): "ID",
    ("play", ECHO, "--seed", "-1"): "--seed -1",
    ("play", ECHO, "--seed", "x"): "--seed",
    ("play", ECHO, "--policy"): "--policy",
    ("play", ECHO, "--json"): "--json",
    ("check", ECHO, "--seeds", "0"): "--seeds 0",
    ("check", ECHO, "--seeds", "x"): "--seeds",
    ("check", ECHO, "--skip", ""): "unknown check ''",
    ("check", ECHO, "--golden", "/dev/null"): "/dev/null",
    ("check", "--golden", "/nowhere"): "/nowhere",
    ("check", ECHO, "--set", "env.id=agentgym/Nope-v0", "env.kwargs=[]"): "env.kwargs",
    ("doctor", "now"): "now",
    ("envs", "agentgym"): "agentgym",
}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: ascii(" ".join(a)[:60]))
def test_arguments(run, arguments):
    check_refused(run(*arguments), ARGUMENTS[arguments])


# ---- models ---------------------------------------------------------------------------------------------


def tensors(data, change):
    """A safetensors file with another header."""
    size = struct.unpack("<Q", data[:8])[0]
    header = change(json.loads(data[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def reshaped(header):
    entry = next(value for name, value in header.items() if name.endswith("q_proj.weight"))
    entry["shape"] = [entry["shape"][0] * 2, entry["shape"][1] // 2]
    return header


def renamed(header, part, by):
    return {name.replace(part, by): value for name, value in header.items()}


WEIGHTS = {
    "nothing": lambda data: b"",
    "cut in the size": lambda data: data[:5],
    "cut in the header": lambda data: data[:200],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "longer by a byte": lambda data: data + b"\0",
    "a huge header": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "a header that is no JSON": lambda data: tensors(data, lambda header: b"{not json"),
    "a header that is a list": lambda data: tensors(data, lambda header: []),
    "an unknown type": lambda data: data.replace(b'"F32"', b'"Q99"'),
    "another shape": lambda data: tensors(data, reshaped),
    "a pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a page": lambda data: b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "noise": lambda data: bytes(range(256)) * 40,
}
PARTS = {
    "config.json": [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe{", b'{"model_type": 3}'],
    "tokenizer.json": [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe{", b'{"version": "1.0", "model": {"type": "X"}}'],
}
CONFIG_CHANGES = {
    "wider": {"hidden_size": 32},
    "a larger vocabulary": {"vocab_size": 10_000},
    "a smaller vocabulary": {"vocab_size": 20},
    "no heads": {"num_attention_heads": 0},
    "odd heads": {"num_attention_heads": 3},
    "text for a number": {"num_hidden_layers": "two"},
    "an unknown activation": {"hidden_act": "nope"},
    "no positions": {"max_position_embeddings": 0},
}
TEMPLATES = {
    "broken": "{% for m in messages %}{{ m.content ",
    "unknown": "{{ messages | shuffle }}",
    "raises": "{{ raise_exception('not for you') }}",
    "silent": "",
    "no end of a turn": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}


def check_model(run, folder):
    before = snapshot(folder)
    check_refused(run("eval", "--env", ECHO, "--policy", f"hf:{folder}", "--episodes", "2"), folder.name)
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(run, model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(WEIGHTS[name](file.read_bytes()))
    check_model(run, folder)


@pytest.mark.parametrize(("file", "data"), [(f, d) for f, versions in PARTS.items() for d in versions], ids=ascii)
def test_other_files_of_a_model(run, model, tmp_path, file, data):
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / file).write_bytes(data)
    check_model(run, folder)


@pytest.mark.parametrize("name", CONFIG_CHANGES)
def test_a_config_of_another_model(run, model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "damaged")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **CONFIG_CHANGES[name]}))
    check_model(run, folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(run, model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    code, out, err = run("eval", "--env", ECHO, "--policy", f"hf:{folder}", "--episodes", "2")
    check_refused((code, out, err), "template")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": "none.safetensors"}}', '{"weight_map": 3}'])
def test_indices_of_shards(run, model, tmp_path, index):
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    check_model(run, folder)


def test_a_folder_for_the_weights_and_a_file_for_the_folder(run, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "damaged")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    check_model(run, folder)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    policy = f"hf:{tmp_path}/model.gguf"
    check_refused(run("eval", "--env", ECHO, "--policy", policy), "model.gguf: there is no such folder")


@pytest.mark.parametrize("part", ["q_proj", "embed_tokens", "norm", "layers.0"])
def test_missing_weights_are_named_and_not_made_up(run, model, tmp_path, part):
    folder = shutil.copytree(model, tmp_path / "damaged")
    file = folder / "model.safetensors"
    file.write_bytes(tensors(file.read_bytes(), lambda header: renamed(header, part, "other")))
    check_refused(run("eval", "--env", ECHO, "--policy", f"hf:{folder}", "--episodes", "2"), part)


def test_missing_weights_of_fewer_layers_than_the_config_says(run, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "damaged")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 2}))
    check_refused(run("eval", "--env", ECHO, "--policy", f"hf:{folder}", "--episodes", "2"), "layers.1")


# ---- checkpoints and run folders ------------------------------------------------------------------------

RUN_FILES = {
    "config.yaml": [b"{", b"- 1\n", b"\xff\xfe", bytes(50)],
    "metrics.jsonl": [
        b"\x00\x01\n{}\n",
        b"[1, 2]\n[3]\n",
        b'{"step": "one"}\n{"step": 2}\n',
        b"not json\n{}\n",
        b"5\n{}\n",
    ],
    "evaluation.json": [b"{", b"[]", b'{"before": 3}', b'{"before": {"step": "x"}}', b"\xff", b"null"],
    "demonstrations.jsonl": [b"", b"{}\n", b"<html>\n", b"\xff\xfe\n", b'{"agentgym_trajectories": 99}\n'],
}
CHECKPOINT_FILES = {
    "model.safetensors": [b"", b"\x07" * 99, None],
    "trainer_state.pt": [b"\x07" * 99, b"PK\x03\x04", b"\x80\x04}q\x00."],
}


@pytest.mark.parametrize(("file", "data"), [(f, d) for f, versions in RUN_FILES.items() for d in versions], ids=ascii)
def test_a_damaged_run_is_not_resumed(run, trained, tmp_path, file, data):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert (folder / file).exists(), sorted(p for p in folder.rglob("*") if p.is_file())
    (folder / file).write_bytes(data)
    before = snapshot(folder)
    result = run("train", "sft", "--out", folder, "--resume", "--set", *QUICK, "save_every=1")
    check_refused(result, Path(file).name)
    after = snapshot(folder)
    assert {k: v for k, v in after.items() if k in before and "versions.json" not in k} == {
        k: v for k, v in before.items() if "versions.json" not in k
    }


@pytest.mark.parametrize(("file", "data"), [(f, d) for f, data in CHECKPOINT_FILES.items() for d in data], ids=ascii)
def test_a_damaged_checkpoint_is_set_aside_and_only_the_last_one_stops_the_run(run, trained, tmp_path, file, data):
    folder = shutil.copytree(trained, tmp_path / "run")
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())

    def damage(name):
        path = folder / "checkpoints" / name / file
        path.unlink() if data is None else path.write_bytes(data)

    damage(names[-1])
    with pytest.warns(UserWarning, match=rf"{names[-1]} is damaged .*going on from {names[-2]}"):
        code, _, _ = run("train", "sft", "--out", folder, "--resume", "--set", *QUICK, "save_every=1")
    assert code == 0
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [f"damaged_{names[-1]}", *names]
    for name in names:
        damage(name)
    with pytest.warns(UserWarning, match=f"{names[-1]} is damaged"):
        result = run("train", "sft", "--out", folder, "--resume", "--set", *QUICK, "save_every=1")
    check_refused(result, names[0], "damaged")


VIEWED = {
    "config.yaml": [b"", b"\xff\xfe\x00", None],
    "metrics.jsonl": [b"", b"\xff\xfe\n{}\n", b"[1]\n{}\n", b'{"step": null}\n{}\n', b'{"step": 1}\n', b"5\n6\n", None],
    "evaluation.json": [
        b"{",
        b"[1]",
        b'{"before": 3}',
        b'{"before": {"success": 3}}',
        b'{"before": {"success": {}}}',
        b"\xff",
    ],
    "tokens.json": [b"{", b"{}", b"3", b"[1, 2, 3]", b"[null]", b"\xff"],
    "trajectories/expert.jsonl": [
        b"",
        b"{}\n",
        b"[]\n{}\n",
        b"<html></html>\n",
        b"\xff\xfe\n",
        b'{"agentgym_trajectories": 2}\n',
        b'{"agentgym_trajectories": 1}\n{}\n{}\n',
        b'{"agentgym_trajectories": 1}\n[1]\n[2]\n',
        b'{"agentgym_trajectories": 1}\nnull\nnull\n',
        b'{"agentgym_trajectories": 1}\n{"env_id": 3}\n{"env_id": 3}\n',
    ],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder as a trainer leaves it."""
    return run_folder.make_run(tmp_path_factory.mktemp("finished") / "run", count=16, steps=3)


@pytest.mark.parametrize(("file", "data"), [(f, d) for f, versions in VIEWED.items() for d in versions], ids=ascii)
def test_a_damaged_run_is_not_shown(run, finished, tmp_path, file, data):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "report.html").write_text("an older report")
    (folder / file).unlink()
    if data is not None:
        (folder / file).write_bytes(data)
    before = snapshot(folder)
    if file.startswith("trajectories") and data == b"":
        assert run("view", folder)[0] == 0  # nothing was written yet when it was killed
        return
    check_refused(run("view", folder), Path(file).name)
    assert snapshot(folder) == before


# ---- stores of trajectories -----------------------------------------------------------------------------


def lines_of(file):
    return file.read_bytes().splitlines(keepends=True)


def changed(line, **fields):
    """A stored trajectory with other fields; None removes one."""
    row = json.loads(line) | fields
    return json.dumps({key: value for key, value in row.items() if value != "REMOVE"}).encode() + b"\n"


LINES = {
    "not utf-8": lambda line: line.replace(b"pantry", b"p\xffntry").replace(b"kitchen", b"\xff"),
    "cut in the middle": lambda line: line[: len(line) // 2] + b"\n",
    "two in one": lambda line: line.rstrip() + line,
    "a list": lambda line: b"[" + line.rstrip() + b"]\n",
    "text": lambda line: b'"trajectory"\n',
    "null": lambda line: b"null\n",
    "no env_id": lambda line: changed(line, env_id="REMOVE"),
    "an unknown field": lambda line: changed(line, colour="red"),
    "an unknown status": lambda line: changed(line, status="won"),
    "no segments": lambda line: changed(line, segments="REMOVE"),
    "segments that are text": lambda line: changed(line, segments="none"),
    "segments of numbers": lambda line: changed(line, segments=[1]),
    "a segment with an odd field": lambda line: changed(line, segments=[{"ids": [], "edit": None, "odd": 1}]),
    "a segment without an edit": lambda line: changed(line, segments=[{"ids": [1]}]),
    "an edit that is text": lambda line: changed(line, segments=[{"edit": "x"}]),
    "turns that are text": lambda line: changed(line, turns=["look"]),
    "a turn without a place": lambda line: changed(line, turns=[{"observation": "x"}]),
    "turns that are a number": lambda line: changed(line, turns=3),
    "nested too deeply": lambda line: b"[" * 100_000 + b"\n",
    "a number of thousands of digits": lambda line: b'{"env_seed": ' + b"9" * 5000 + b"}\n",
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_a_store(run, finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "run")
    file = folder / "trajectories" / "expert.jsonl"
    header, first, *rest = lines_of(file)
    file.write_bytes(b"".join([header, LINES[name](first), *rest]))
    before = snapshot(folder)
    check_refused(run("view", folder), "expert.jsonl, line 2: not a trajectory")
    with pytest.raises(ConfigError, match=r"expert\.jsonl, line 2"):
        store.read(file)
    assert snapshot(folder) == before


@pytest.mark.parametrize("part", [0, 1, 4, 50, 0.5, 0.9, -1, -4, -8])
def test_truncated_parquet(finished, tmp_path, part):
    file = tmp_path / "t.parquet"
    store.write(file, store.read(finished / "trajectories" / "expert.jsonl"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part) if isinstance(part, float) else part])
    with pytest.raises(ConfigError) as caught:
        store.read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_parquet_never_raises_anything_else(finished, tmp_path):
    file = tmp_path / "t.parquet"
    store.write(file, store.read(finished / "trajectories" / "expert.jsonl"))
    data = file.read_bytes()
    refused = 0
    for place in range(0, len(data), len(data) // 60):
        file.write_bytes(data[:place] + bytes(b ^ 0x5A for b in data[place : place + 8]) + data[place + 8 :])
        with contextlib.suppress(ConfigError):
            store.read(file)
            continue
        refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", ["t.json", "t", "t.JSONL", "t.parquet.gz", ""])
def test_names_of_stores(tmp_path, name):
    for call in (store.read, lambda path: store.write(path, []), lambda path: store.append(path, [])):
        with pytest.raises(ConfigError) as caught:
            call(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_is_not_gone_on_with_in_a_damaged_file(run, tmp_path):
    base = ["eval", "--env", ECHO, "--policy", "random", "--out", tmp_path, "--json"]
    assert run(*base, "--episodes", "3")[0] == 0
    good = (tmp_path / "random.jsonl").read_bytes()
    header, first, *rest = good.splitlines(keepends=True)
    for damaged in (first + b"".join(rest), header + b"{}\n" + b"".join(rest), b"\xff" + good, b"PAR1" + bytes(60)):
        (tmp_path / "random.jsonl").write_bytes(damaged)
        code, out, err = run(*base, "--episodes", "5")
        check_refused((code, "", err), "random.jsonl")
        assert json.loads(out)["kind"] == "ConfigError"
        assert (tmp_path / "random.jsonl").read_bytes() == damaged
    (tmp_path / "random.jsonl").write_bytes(good)
    for damaged in (b"", b"[]", b"null", b"{", b"\xff", b"3"):
        (tmp_path / "random.json").write_bytes(damaged)
        code, out, err = run(*base, "--episodes", "5")
        check_refused((code, "", err), "random.json")
        assert (tmp_path / "random.jsonl").read_bytes() == good


# ---- what a model writes --------------------------------------------------------------------------------

TEXTS = {
    "plain": ["", " ", "\n\n\t\n", "\u2028", "\x0c"],
    "tagged": [
        *("", "take coin", "<action>", "</action>", "<action></action>", "<action> \n </action>", "<action>go"),
        *("go</action>", "</action>go<action>", "<Action>go</Action>", "<action go>", "<action>" * 999),
    ],
    "tool_call": [
        *(
            "",
            "go",
            "{}",
            "[]",
            "null",
            "3",
            '"go"',
            "{" * 3000,
            "[" * 100_000,
            "<tool_call>",
            "<tool_call></tool_call>",
        ),
        *('{"name": "act"}', '{"name": "act", "arguments": {}}', '{"name": "act", "arguments": "go"}'),
        *('{"name": "act", "arguments": {"command": ""}}', '{"name": "act", "arguments": {"command": 3}}'),
        *('{"name": "act", "arguments": {"command": null}}', '{"name": "act", "arguments": {"command": ["go"]}}'),
        *('{"name": "Act", "arguments": {"command": "go"}}', '{"name": ["act"]}', "{'name': 'act'}", "9" * 5000),
        *('{"name": "act", "arguments": {"command": "go"', '{"name": "act", "arguments": {"command": "go"}} {}'),
        *("<tool_call>{}</tool_call>", "<tool_call>" * 500, "NaN", "\x00", "\ud800"),
    ],
    "tools": [
        *("", " ", "python", "print(1)", "<tool_call></tool_call>", "<tool_call>{}</tool_call>", '{"name": 3}', "[]"),
        *('{"name": "", "arguments": {}}', '{"name": "a\\nb", "arguments": 3}', '{"name": "f", "arguments": "{"}'),
        *('{"name": "f", "arguments": {"x": Infinity}}', '{"tool_calls": [{}]}', "[" * 100_000, "\x00", "9" * 5000),
    ],
    "choice": ["", "go", "0", "5", "-", "١٢", "9" * 5000, "1e9", "²", "1 or 7", "none of 3 but 0"],
}


@pytest.mark.parametrize(
    ("codec", "text"), [(c, t) for c, texts in TEXTS.items() for t in texts], ids=lambda x: ascii(x[:40])
)
def test_answers_of_a_model_are_data(codec, text):
    parsed = actions.make_codec(codec).parse(text, ["go north", "go south", "look"])
    assert parsed.action is None
    assert parsed.error
    assert "\n" not in parsed.error
    assert len(parsed.error) < 300


# ---- in a shell, and on a full disk ---------------------------------------------------------------------


def shell(script, **environment):
    """Run a line of shell; $A is the command line."""
    return subprocess.run(
        ["bash", "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "A": f"{sys.executable} -m agentgym.cli",
            "E": ECHO,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("$A train grpo --set optim.lr=fast --show-config", "optim.lr"),
        ("$A eval --env $E --policy hf:/nowhere", "/nowhere"),
        ("$A play $E --policy canned:", "canned"),
        ("$A check nowhere/A-v0", "nowhere/A-v0"),
        ("$A view /nowhere", "/nowhere"),
        ("$A envs > /dev/full", "No space left on device"),
        ("$A doctor --json > /dev/full", "No space left on device"),
        ("$A train sft --show-config > /dev/full", "No space left on device"),
    ],
)
def test_in_a_shell(script, named):
    done = shell(script)
    check_refused((done.returncode, done.stdout, done.stderr), named)


def fill(disk, left):
    """Leave so many bytes."""
    with open(disk / "filler", "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - left)


@pytest.mark.filterwarnings("ignore:.*the last trajectory was cut")
@pytest.mark.parametrize(
    "command",
    [
        "eval --env $E --policy random --episodes 400 --json --out OUT/e",
        "check helpers_broken_envs:broken/Good-v0 --golden OUT/g --write",
        "view OUT/run",
        "train sft --out OUT/t --set " + " ".join(QUICK),
    ],
    ids=lambda c: c.split()[0],
)
@pytest.mark.parametrize("how", ["a full disk", "a limit of file size"])
def test_a_full_disk(finished, tmp_path, command, how):
    disk, small = tmp_path / "disk", how == "a full disk"
    disk.mkdir()
    if small and (os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "t", disk]).returncode):
        pytest.skip("only root can mount a small disk")
    try:
        shutil.copytree(finished, disk / "run")
        for name in ("e", "g", "t"):
            (disk / name).mkdir()
        (disk / "run" / "report.html").write_text("an older report")
        before = snapshot(disk)
        if small:
            fill(disk, left=40960 if command.startswith("eval") else 0)
        limit = "" if small else "ulimit -f 32; " if command.startswith("eval") else "ulimit -f 0; "
        done = shell(f"{limit}$A {command.replace('OUT', str(disk))}")
        out = "" if done.stdout.startswith('{"error"') else done.stdout
        named = "No space left on device" if small else "File too large"
        check_refused((done.returncode, out, done.stderr), named)
        (disk / "filler").unlink(missing_ok=True)
        after = snapshot(disk)
        assert {name: after.get(name) for name in before} == before
        assert not [name for name in after if name.endswith(".tmp")]
        if command.startswith("eval"):
            assert len(store.read(disk / "e" / "random.jsonl")) >= 3
    finally:
        if small:
            subprocess.run(["umount", disk], check=True)
