"""The command line: quick to answer, clear about every mistake, and the same results as the library."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers_envs
import pytest
import yaml
from agentgym.trainers import sft
from helpers_policies import tiny_model

from agentgym import cli, store
from agentgym.evaluate import compare
from agentgym.registration import ENVIRONMENTS
from agentgym.run import Run

TESTS = Path(__file__).parent
PROGRESS = re.compile(r" \d+/\d+(,| ) *\d|^$")
ECHO = "helpers_envs:test/Echo-v0"
TINY = ["model.hidden=16", "model.layers=1", "model.heads=2", "model.vocab_size=280", "rollout.max_new_tokens=8"]
QUICK = [*TINY, f"env.id={ECHO}", "eval.final_episodes=4", "demonstrations=8", "epochs=1", "rollout.context_limit=300"]


def command(*arguments, **settings):
    """Run the command line as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "agentgym.cli", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **settings,
    )


@pytest.fixture
def run(capfd, monkeypatch):
    """Run the command line in this process, which has imported torch already."""
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


# ---- quick ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["eval", "--help"],
        ["view", "--help"],
        ["envs", "--help"],
        ["envs", "--json"],
        ["train", "grop"],
        ["eval", "--env", ECHO, "--policy", "expert", "--episodes", "3", "--json"],
    ],
)
def test_nothing_heavy_is_imported_without_need(arguments):
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "pyarrow", "textworld", "textworld_express", "py4j"}
    if "eval" not in arguments[0]:
        heavy |= {"asyncio"}
    code = (
        "import sys\n"
        "import agentgym\n"
        "before = set(sys.modules)\n"
        "from agentgym.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write('MODULES ' + ' '.join({m.partition('.')[0] for m in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    modules = set(done.stderr.partition("MODULES ")[2].split())
    assert "agentgym" in modules
    assert not modules & heavy
    assert done.stdout or "unknown algorithm" in done.stderr


def test_help_names_every_command():
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("envs", "train", "eval", "view"))
    done = command()
    assert done.returncode == 2
    assert "usage: agentgym" in done.stdout


def test_envs_lists_every_registered_id(run):
    import gymnasium

    registered = {i for i in gymnasium.registry if i.startswith("agentgym/")}
    code, out, err = run("envs", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert {row["id"] for row in rows} == registered == {e.id for e in ENVIRONMENTS}
    assert all(row["summary"] and set(row) == {"id", "summary", "extra", "needs"} for row in rows)
    code, out, _ = run("envs")
    assert [line.split()[0] for line in out.splitlines()] == [e.id for e in ENVIRONMENTS]


def test_a_reader_that_goes_away_is_no_error():
    script = f"{sys.executable} -m agentgym.cli envs --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


# ---- mistakes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files and folders that are wrong in all kinds of ways."""
    folder = tmp_path_factory.mktemp("place")
    model, tokenizer = tiny_model(hidden=16, layers=1)
    good = folder / "model"
    model.save_pretrained(good)
    tokenizer.save_pretrained(good)
    weights = (good / "model.safetensors").read_bytes()

    def variant(name, **changes):
        shutil.copytree(good, folder / name)
        for file, data in changes.items():
            path = folder / name / file.replace("__", ".")
            path.unlink() if data is None else path.write_bytes(data)

    variant("cut", model__safetensors=weights[: len(weights) // 2])
    variant("noise", model__safetensors=b"\x07" * 4096)
    variant("empty_weights", model__safetensors=b"")
    variant("no_weights", model__safetensors=None)
    variant("no_config", config__json=None)
    variant("bad_config", config__json=b"{ not json")
    variant("odd_config", config__json=b'{"model_type": "no_such_model"}')
    variant("list_config", config__json=b"[1, 2]")
    variant("wide_config", config__json=b'{"model_type": "llama", "hidden_size": "wide"}')
    variant("small_config", config__json=b'{"model_type": "llama", "hidden_size": 6, "num_attention_heads": 4}')
    variant("bad_tokenizer", tokenizer__json=b"{ not json")
    variant("list_tokenizer", tokenizer__json=b"[1, 2]")
    shutil.copytree(good, folder / "no_template")
    tokenizer.chat_template = None
    shutil.rmtree(folder / "no_template")
    model.save_pretrained(folder / "no_template")
    tokenizer.save_pretrained(folder / "no_template")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "bad.yaml").write_text("a: [1\nb: }")
    (folder / "key.yaml").write_text("optim:\n  lrr: 1.0\n")
    (folder / "nested.yaml").write_text("optim: 3\n")
    (folder / "latin.yaml").write_bytes(b"# caf\xe9\nseed: 0\n")
    (folder / "odd.yaml").write_text("1: 2\n")
    (folder / "preset.yaml").write_text("preset: [grpo]\n")
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    begun = Run(folder / "begun", sft.make_config({}))
    begun.log(1, {"sft/nll": 1.0})
    (folder / "other").mkdir()
    (folder / "other" / "random.jsonl").write_text("")
    (folder / "other" / "random.json").write_text('{"policy": "random", "seed": 5}')
    return folder


TRAIN = ["train", "sft", "--out", "OUT"]
GRPO = ["train", "grpo", "--out", "OUT"]
EVAL = ["eval", "--env", ECHO]
MISTAKES = {
    "a command that is not there": (["trian"], "trian"),
    "an option that is not there": (["envs", "--jsno"], "--jsno"),
    "no algorithm": (["train"], "ALGO"),
    "a misspelt algorithm": (["train", "gppo"], "unknown algorithm 'gppo': did you mean"),
    "an unknown algorithm": (
        ["train", "dqn"],
        "algorithm 'dqn': choose from: craft_gui, epo, gigpo, grpo, igpo, iterresearch, lspo, poad, ppo, sft",
    ),
    "no --out": (["train", "sft"], "--out DIR is missing"),
    "an unknown option of train": (["train", "sft", "--outt", "x"], "--outt"),
    "an unknown key": ([*TRAIN, "--set", "optim.lrr=1"], "optim.lrr"),
    "an unknown section": ([*TRAIN, "--set", "optimizer.lr=1"], "optimizer"),
    "a wrong type": ([*TRAIN, "--set", "optim.lr=fast"], "optim.lr: expected float, got 'fast'"),
    "a truth value for a number": ([*TRAIN, "--set", "epochs=true"], "epochs"),
    "a fraction for a count": ([*TRAIN, "--set", "epochs=1.5"], "epochs: expected int, got 1.5"),
    "a list for a number": ([*TRAIN, "--set", "epochs=[1]"], "epochs"),
    "a setting without a value": ([*TRAIN, "--set", "optim.lr"], "--set optim.lr: write key=value"),
    "a setting without a key": ([*TRAIN, "--set", "=3"], "--set =3"),
    "a value that is not YAML": ([*TRAIN, "--set", "optim.lr=[1"], "--set optim.lr"),
    "a section for a setting": ([*TRAIN, "--set", "optim=3"], "optim: expected settings"),
    "a setting below a setting": ([*TRAIN, "--set", "optim.lr.x=1"], "optim.lr"),
    "--set with nothing": ([*TRAIN, "--set"], "--set"),
    "a negative learning rate": ([*TRAIN, "--set", "optim.lr=-1"], "optim.lr is -1"),
    "a learning rate that is not a number": ([*TRAIN, "--set", "optim.lr=.nan"], "optim.lr"),
    "no epochs": ([*TRAIN, "--set", "epochs=0"], "epochs is 0"),
    "a negative number of demonstrations": ([*TRAIN, "--set", "demonstrations=-5"], "demonstrations is -5"),
    "noise above one": ([*TRAIN, "--set", "noise=2"], "noise is 2"),
    "a negative seed": ([*TRAIN, "--seed", "-1"], "seed is -1"),
    "a negative evaluation seed": ([*TRAIN, "--set", "eval.seed=-1"], "eval.seed is -1"),
    "a seed that is no number": ([*TRAIN, "--seed", "one"], "--seed"),
    "a seed beyond all bounds": ([*TRAIN, "--seed", "1e9"], "--seed"),
    "a codec that is not there": ([*TRAIN, "--set", "rollout.codec=plane"], "'plane': did you mean plain?"),
    "a context that is not there": ([*TRAIN, "--set", "rollout.context=windw"], "unknown context 'windw'"),
    "no room for a prompt": ([*TRAIN, "--set", "rollout.max_new_tokens=9999"], "rollout.max_new_tokens (9999)"),
    "an odd width": ([*TRAIN, "--set", "model.hidden=30"], "model.hidden (30)"),
    "an unknown type of number": ([*TRAIN, "--set", "model.dtype=float8"], "model.dtype"),
    "negative threads": ([*TRAIN, "--set", "model.threads=-1"], "model.threads is -1"),
    "a context beyond the tiny model": (
        [*TRAIN, "--set", "rollout.context_limit=9999"],
        "rollout.context_limit is 9999",
    ),
    "an unknown environment": (
        [*TRAIN, "--set", "env.id=agentgym/TextWorldExpres-v0"],
        "did you mean agentgym/TextWorld",
    ),
    "a module that is not there": ([*TRAIN, "--set", "env.id=nowhere_7c1:a/B-v0"], "cannot import nowhere_7c1"),
    "a wrong argument of an environment": ([*TRAIN, "--set", f"env.id={ECHO}", "env.kwargs.rouns=1"], "rouns"),
    "an unknown game": ([*TRAIN, "--set", "env.kwargs.game=chess"], "unknown game 'chess'"),
    "an environment without an expert": ([*TRAIN, "--set", "env.id=helpers_envs:test/NoExpert-v0"], "has no expert"),
    "a config that is not there": ([*TRAIN, "--config", "PLACE/none.yaml"], "none.yaml"),
    "a config that is a folder": ([*TRAIN, "--config", "PLACE/empty"], "empty"),
    "a config that is not YAML": ([*TRAIN, "--config", "PLACE/bad.yaml"], "bad.yaml is not valid YAML"),
    "a config that is a list": ([*TRAIN, "--config", "PLACE/list.yaml"], "list.yaml: expected settings"),
    "a config with an unknown key": ([*TRAIN, "--config", "PLACE/key.yaml"], "optim.lrr"),
    "a config with a wrong section": ([*TRAIN, "--config", "PLACE/nested.yaml"], "optim: expected settings"),
    "a config in another encoding": ([*TRAIN, "--config", "PLACE/latin.yaml"], "latin.yaml"),
    "a config with a number for a key": ([*TRAIN, "--config", "PLACE/odd.yaml"], "unknown config key"),
    "a preset that is a list": ([*GRPO, "--config", "PLACE/preset.yaml"], "unknown preset"),
    "an unknown preset": ([*GRPO, "--set", "preset=drgrpo"], "unknown preset 'drgrpo': did you mean dr_grpo"),
    "a group of one": ([*GRPO, "--set", "group_size=1"], "group_size is 1"),
    "more minibatches than groups": ([*GRPO, "--set", "minibatches=9"], "minibatches (9) exceeds groups (8)"),
    "greedy training": ([*GRPO, "--set", "rollout.temperature=0"], "temperature above 0"),
    "a folder with a run": (
        ["train", "sft", "--out", "PLACE/begun", "--set", f"env.id={ECHO}"],
        "begun holds a run already",
    ),
    "nothing to resume": (
        ["train", "sft", "--out", "PLACE/empty", "--resume", "--set", f"env.id={ECHO}"],
        "nothing to resume",
    ),
    "a resume without a folder": (["train", "sft", "--resume"], "--out DIR is missing"),
    "a resume with other settings": (
        ["train", "sft", "--out", "PLACE/begun", "--resume", "--set", "epochs=9", "noise=0.5", f"env.id={ECHO}"],
        "was started with env.id",
    ),
    "a file for a run folder": (["train", "sft", "--out", "PLACE/file", "--set", f"env.id={ECHO}"], "cannot write to"),
    "a run folder below a file": (
        ["train", "sft", "--out", "PLACE/file/x", "--set", f"env.id={ECHO}"],
        "cannot write to",
    ),
    "a model from nothing": ([*GRPO, "--set", f"env.id={ECHO}"], "model.path=tiny has nothing to start from"),
    "no environment": (["eval", "--policy", "random"], "--env"),
    "no policy": (EVAL, "--policy"),
    "a misspelt policy": ([*EVAL, "--policy", "exprt"], "unknown policy 'exprt': did you mean expert?"),
    "an unknown policy": ([*EVAL, "--policy", "gpt:x"], "unknown policy 'gpt:x'"),
    "a model without a name": ([*EVAL, "--policy", "hf:"], "policy hf: needs a folder"),
    "no canned action": ([*EVAL, "--policy", "canned: ; "], "the canned policy needs at least one action"),
    "no episodes": ([*EVAL, "--policy", "random", "--episodes", "0"], "--episodes 0"),
    "a negative number of episodes": ([*EVAL, "--policy", "random", "--episodes", "-3"], "--episodes -3"),
    "a number of episodes that is none": ([*EVAL, "--policy", "random", "--episodes", "many"], "--episodes"),
    "a negative seed of an evaluation": ([*EVAL, "--policy", "random", "--seed", "-1"], "--seed -1"),
    "negative threads of an evaluation": ([*EVAL, "--policy", "random", "--threads", "-1"], "--threads -1"),
    "a setting that is not for evaluations": (
        [*EVAL, "--policy", "random", "--set", "optim.lr=1"],
        "unknown config key 'optim'",
    ),
    "an unknown environment to evaluate on": (
        ["eval", "--env", "agentgym/Nope-v0", "--policy", "random"],
        "agentgym/Nope-v0",
    ),
    "an environment without text": (
        ["eval", "--env", "helpers_envs:test/Numbers-v0", "--policy", "canned:a"],
        "an observation must be text, but this is ndarray",
    ),
    "an environment of another kind": (
        ["eval", "--env", "CartPole-v1", "--policy", "canned:a"],
        "an observation must be text",
    ),
    "an expert of an environment without one": (
        ["eval", "--env", "helpers_envs:test/NoExpert-v0", "--policy", "expert"],
        "has no expert",
    ),
    "random commands of an environment without a list": (
        ["eval", "--env", "helpers_envs:test/NoExpert-v0", "--policy", "random"],
        "admissible_commands",
    ),
    "an action that cannot be written": (
        [*EVAL, "--policy", "canned:fly", "--episodes", "3", "--set", "rollout.codec=choice"],
        "'fly', which rollout.codec cannot write",
    ),
    "a file for the folder of an evaluation": (
        [*EVAL, "--policy", "random", "--out", "PLACE/file"],
        "cannot keep an evaluation",
    ),
    "a folder that cannot be made": ([*EVAL, "--policy", "random", "--out", "/proc/none"], "/proc/none"),
    "the folder of another evaluation": ([*EVAL, "--policy", "random", "--out", "PLACE/other"], "seed: 5, not 0"),
    "an environment that always fails": (
        ["eval", "--env", "helpers_envs:test/Fault-v0", "--policy", "canned:a", "--set", "env.kwargs.fault=raise"],
        "of the last 8 groups failed for reasons outside the policy (env_error: reset raised RuntimeError: it broke)",
    ),
    "an environment that cannot be made": (
        [
            "eval",
            "--env",
            "helpers_envs:test/Fault-v0",
            "--policy",
            "canned:a",
            "--set",
            "env.kwargs.fault=constructor",
        ],
        "cannot be made: RuntimeError: no room for another one",
    ),
    "a report of nothing": (["view", "PLACE/none"], "no run folder"),
    "a report of an empty folder": (["view", "PLACE/empty"], "not a complete run folder"),
    "a report of a file": (["view", "PLACE/file"], "no run folder"),
    "a report without a folder": (["view"], "DIR"),
}
MODELS = {
    "none": "there is no such folder",
    "empty": "config.json",
    "no_config": "config.json",
    "bad_config": "bad_config",
    "odd_config": "odd_config",
    "list_config": "/list_config'",
    "wide_config": "/wide_config'",
    "small_config": "/small_config'",
    "list_tokenizer": "/list_tokenizer'",
    "no_weights": "no_weights",
    "cut": "/cut'",
    "noise": "/noise'",
    "empty_weights": "/empty_weights'",
    "bad_tokenizer": "/bad_tokenizer'",
    "no_template": "has no chat template",
}


def check_mistake(code, out, err, named):
    lines = [line for line in err.splitlines() if not PROGRESS.search(line)]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("agentgym: error: ")
    assert named in lines[0]
    assert len(lines[0]) < 600
    assert out == ""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(run, place, tmp_path, name):
    arguments, named = MISTAKES[name]
    before = sorted(place.rglob("*"))
    filled = [a.replace("PLACE", str(place)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    check_mistake(*run(*filled), named)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "final").exists()
    assert [p for p in sorted(place.rglob("*")) if p not in before and p.name not in (".lock", "trajectories")] == []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["train", "eval"])
def test_a_model_that_cannot_be_loaded_is_named(run, place, tmp_path, name, how):
    model = place / name
    if how == "train":
        arguments = ["train", "grpo", "--out", tmp_path / "out", "--set", f"env.id={ECHO}", f"model.path={model}"]
    else:
        arguments = [*EVAL, "--policy", f"hf:{model}"]
    check_mistake(*run(*arguments), MODELS[name])
    assert not (tmp_path / "out").exists()


def test_a_relative_folder_without_a_model_is_not_looked_for_elsewhere(run, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    for path in ("empty/none/final", "empty/none", "./none"):
        check_mistake(*run(*EVAL, "--policy", f"hf:{path}"), f"no model in {path}: there is no such folder")


def test_a_context_beyond_the_model_is_refused(run, place, tmp_path):
    limit = "rollout.context_limit=5000"
    model = f"model.path={place / 'model'}"
    named = "rollout.context_limit is 5000, but the model of"
    check_mistake(*run(*EVAL, "--policy", f"hf:{place / 'model'}", "--set", limit), named)
    for algorithm in ("sft", "grpo"):
        out = tmp_path / algorithm
        check_mistake(*run("train", algorithm, "--out", out, "--set", f"env.id={ECHO}", model, limit), named)
        assert not out.exists()


def test_without_java_the_game_says_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    named = "java is not installed (TextWorldExpress runs in it): apt-get install"
    check_mistake(*run("eval", "--env", "agentgym/TextWorldExpress-v0", "--policy", "random"), named)
    check_mistake(*run("train", "sft", "--out", tmp_path / "out"), named)
    assert not (tmp_path / "out").exists()


def test_without_torch_training_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    for arguments in (["train", "sft", "--out", tmp_path / "out"], [*EVAL, "--policy", "hf:x"]):
        done = command(*arguments, env={"PYTHONPATH": f"{tmp_path}:{TESTS}"})
        check_mistake(
            done.returncode, done.stdout, done.stderr, "torch is not installed: pip install 'agentgym-lab[train]'"
        )


@pytest.mark.parametrize(
    "name", ["a command that is not there", "an unknown policy", "an environment that always fails", "a wrong type"]
)
def test_mistakes_look_the_same_in_a_shell(place, tmp_path, name):
    arguments, named = MISTAKES[name]
    done = command(*[a.replace("PLACE", str(place)).replace("OUT", str(tmp_path / "out")) for a in arguments])
    check_mistake(done.returncode, done.stdout, done.stderr, named)


def test_machines_get_the_error_too(run):
    code, out, err = run("eval", "--env", "agentgym/Nope-v0", "--policy", "random", "--json")
    assert code == 2
    assert json.loads(out)["kind"] == "ConfigError"
    assert "agentgym/Nope-v0" in json.loads(out)["error"]
    assert len(err.splitlines()) == 1


# ---- eval -----------------------------------------------------------------------------------------------


def test_one_policy_gives_one_result_and_several_give_a_list(run):
    code, out, err = run(*EVAL, "--policy", "expert", "--episodes", "12", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert (result["env"], result["policy"], result["seed"]) == (ECHO, "expert", 0)
    assert (result["episodes"], result["failed"]) == (12, 0)
    assert result["success"]["mean"] == 1.0
    assert result["return"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    policies = ["expert", "random", "canned:red", "canned:red;green"]
    arguments = [a for p in policies for a in ("--policy", p)]
    code, out, _ = run(*EVAL, *arguments, "--episodes", "60", "--json", "--set", "env.kwargs.words=2")
    results = json.loads(out)
    assert [r["policy"] for r in results] == policies
    assert [r["episodes"] for r in results] == [60] * 4
    assert results[0]["success"]["mean"] == 1.0
    for r in results[1:]:
        low, high = r["success"]["ci95"]
        assert low < 0.25 < high
    code, out, _ = run(*EVAL, "--policy", "expert", "--policy", "random", "--episodes", "12")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[0] for line in lines] == [
        *("means", "policy", "─" * len(lines[2][0]), "expert", "random"),
        *("difference", "policy", "─" * len(lines[7][0]), "random"),
    ]
    assert lines[3] == ["expert", "12", "0", "100.0", "[75.8,", "100.0]", "1.00", "[1.00,", "1.00]", "2.0", "n/a"]
    assert lines[8][1:3] == ["12", "0"]
    assert lines[8][3].startswith("-")


def test_policies_are_compared_with_the_first_one(run, tmp_path):
    arguments = ["--policy", "expert", "--policy", "random", "--policy", "canned:red", "--episodes", "40", "--json"]
    _, out, _ = run(*EVAL, *arguments, "--out", tmp_path)
    results = json.loads(out)
    assert "versus" not in results[0]
    played = {r["policy"]: store.read(tmp_path / f"{r['policy'].replace(':', '_')}.jsonl") for r in results}
    for result in results[1:]:
        versus = result["versus"]
        assert (versus["baseline"], versus["episodes"], versus["dropped"]) == ("expert", 40, 0)
        assert versus["success"]["mean"] == pytest.approx(result["success"]["mean"] - results[0]["success"]["mean"])
        assert versus == compare("expert", played["expert"], played[result["policy"]]).to_dict()


def test_names_of_policies_are_printed_as_they_are(run):
    code, out, _ = run(*EVAL, "--policy", "canned:[bold]red[/bold]", "--policy", "expert", "--episodes", "2")
    assert (code, out.count("canned:[bold]red[/bold]")) == (0, 2)


def test_an_environment_without_success_says_so(run):
    arguments = ["eval", "--env", "helpers_envs:test/NoSuccess-v0", "--policy", "expert", "--policy", "random"]
    code, out, _ = run(*arguments, "--episodes", "8", "--json")
    results = json.loads(out)
    assert (code, [r["success"] for r in results], results[1]["versus"]["success"]) == (0, [None, None], None)
    assert results[1]["versus"]["return"]["mean"] < 0
    code, out, _ = run(*arguments, "--episodes", "8")
    assert (code, "nan" in out, "0.0 [" in out) == (0, False, False)
    assert out.count("n/a") == 5


def test_a_model_is_evaluated_from_its_folder(run, place):
    code, out, _ = run(*EVAL, "--policy", f"hf:{place / 'model'}", "--episodes", "3", "--json", "--threads", "1")
    result = json.loads(out)
    assert (code, result["policy"], result["episodes"]) == (0, f"hf:{place / 'model'}", 3)


def test_settings_come_from_a_trainers_file(run, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("env:\n  kwargs: {rounds: 3}\nrollout: {max_turns: 2}\noptim: {lr: 0.1}\nsteps: 7\n")
    code, out, _ = run(*EVAL, "--policy", "expert", "--episodes", "4", "--json", "--config", file)
    assert (code, json.loads(out)["turns"]["mean"]) == (0, 2.0)
    code, out, _ = run(
        *EVAL, "--policy", "expert", "--episodes", "4", "--json", "--config", file, "--set", "rollout.max_turns=9"
    )
    assert json.loads(out)["turns"]["mean"] == 3.0


def test_an_evaluation_with_a_folder_is_gone_on_with(run, tmp_path):
    base = [*EVAL, "--policy", "random", "--policy", "canned:a/b;c", "--json", "--out", tmp_path / "out"]
    code, out, _ = run(*base, "--episodes", "5")
    assert code == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["canned_a_b_c.json", "canned_a_b_c.jsonl", "random.json", "random.jsonl"]
    first = (tmp_path / "out" / "random.jsonl").read_bytes()
    code, out, _ = run(*base, "--episodes", "9")
    assert (code, [r["episodes"] for r in json.loads(out)]) == (0, [9, 9])
    assert (tmp_path / "out" / "random.jsonl").read_bytes().startswith(first)
    assert len(store.read(tmp_path / "out" / "random.jsonl")) == 9
    _, fresh, _ = run(*[a for a in base if a not in ("--out", tmp_path / "out")], "--episodes", "9")
    assert json.loads(fresh) == json.loads(out)
    code, _, err = run(*base, "--episodes", "9", "--seed", "3")
    assert (code, "seed: 0, not 3" in err) == (2, True)


def test_the_name_of_a_policy_may_be_long(run, tmp_path):
    policy = "canned:" + ";".join(["go north"] * 100)
    code, _, err = run(*EVAL, "--policy", policy, "--json", "--out", tmp_path, "--episodes", "2")
    assert (code, err) == (0, "")
    assert all(len(p.name) < 80 for p in tmp_path.iterdir())


def test_an_interrupted_evaluation_is_gone_on_with(tmp_path):
    arguments = ["eval", "--env", "helpers_envs:test/Fault-v0", "--policy", "random", "--episodes", "60", "--json"]
    arguments += ["--out", tmp_path / "out", "--set", "env.kwargs.delay=0.01", "rollout.concurrency=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "agentgym.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, deadline = tmp_path / "out" / "random.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "agentgym: interrupted\n")
    kept = len(store.read(log))
    assert 5 <= kept < 60
    done = command(*arguments)
    assert (done.returncode, json.loads(done.stdout)["episodes"]) == (0, 60)
    assert len(store.read(log)) == 60


@pytest.mark.java
def test_policies_are_compared_on_a_real_game(tmp_path):
    params = "numLocations=3,maxDistanceApart=1,maxDistractorItemsPerLocation=0,includeDoors=0"
    done = command(
        *[
            "eval",
            "--env",
            "agentgym/TextWorldExpress-v0",
            "--policy",
            "expert",
            "--policy",
            "random",
            "--episodes",
            "12",
        ],
        *["--json", "--set", "env.kwargs.game=mapreader", f'env.kwargs.game_params="{params}"'],
    )
    assert (done.returncode, done.stderr) == (0, "")
    expert, random = json.loads(done.stdout)
    assert expert["success"]["mean"] == 1.0
    assert random["success"]["mean"] < 1.0
    assert expert["turns"]["mean"] < random["turns"]["mean"]
    assert expert["failed"] == random["failed"] == 0


# ---- train and view -------------------------------------------------------------------------------------


def test_the_resolved_settings_can_be_given_back(run, tmp_path):
    for algorithm in ("sft", "grpo"):
        code, out, err = run(
            "train", algorithm, "--set", "optim.lr=1e-4", "env.kwargs.game=twc", "--seed", "7", "--show-config"
        )
        assert (code, err) == (0, "")
        values = yaml.safe_load(out)
        assert (values["optim"]["lr"], values["seed"], values["env"]["kwargs"]) == (1e-4, 7, {"game": "twc"})
        file = tmp_path / f"{algorithm}.yaml"
        file.write_text(out)
        assert run("train", algorithm, "--config", file, "--show-config") == (0, out, "")
        assert yaml.safe_load(run("train", algorithm, "--config", file, "--seed", "8", "--show-config")[1])["seed"] == 8


def test_training_where_success_is_not_defined(run, tmp_path):
    settings = [x.replace(ECHO, "helpers_envs:test/NoSuccess-v0") for x in QUICK]
    code, text, err = run("train", "sft", "--out", tmp_path / "run", "--set", *settings)
    assert code == 0, err
    assert "  after: success % n/a  return" in text
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]["success"] is None
    assert (tmp_path / "run" / "report.html").is_file()


def test_training_evaluating_and_viewing(run, tmp_path):
    helpers_envs.forget()
    out = tmp_path / "a folder"
    code, text, err = run("train", "sft", "--out", out, "--set", *QUICK)
    assert code == 0, err
    assert "  after: success %" in text
    assert f"model:  {out}/final\nreport: {out}/report.html\n" in text
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["hidden"] == 16
    assert json.loads((out / "versions.json").read_text())["gymnasium"]
    (out / "report.html").unlink()
    assert run("view", out) == (0, f"{out}/report.html\n", "")
    assert (out / "report.html").stat().st_size > 10_000
    code, text, _ = run(*EVAL, "--policy", f"hf:{out / 'final'}", "--episodes", "3", "--json")
    assert (code, json.loads(text)["episodes"]) == (0, 3)
    code, _, err = run("train", "sft", "--out", out, "--set", *QUICK)
    assert (code, "holds a run already" in err) == (2, True)
    code, text, err = run("train", "sft", "--out", out, "--resume", "--set", *QUICK)
    assert code == 0, err
