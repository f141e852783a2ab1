"""The endpoint policy against real servers: `transformers serve` with a tiny model, and small ones that misbehave."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helpers_envs
import pytest
import torch
from helpers_policies import tiny_model

from agentgym import store
from agentgym.cli import main
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EngineError, MissingDependency, TooManyFailures
from agentgym.evaluate import evaluate
from agentgym.learner.checkpoint import save_model
from agentgym.learner.model import prepare
from agentgym.learner.pack import rows_of
from agentgym.policies.hf import HFPolicy
from agentgym.policies.specs import make_policy
from agentgym.renderer import HFTokenizer, Renderer
from agentgym.rollout import Rollout, RolloutConfig, Task

OpenAIPolicy = pytest.importorskip("agentgym.policies.openai").OpenAIPolicy
KEY = "sk-secret-7f3a9b"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """`transformers serve` with one model, in a process of its own."""

    def __init__(self, model, log):
        self.model, self.port, self.log = str(model), free_port(), log
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self):
        command = [shutil.which("transformers", path=os.path.dirname(sys.executable)), "serve", self.model]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.2)
        self.kill()
        raise AssertionError("the server did not start")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def lettered():
    """A tiny model that writes letters: no other token is likely."""
    model, tokenizer = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        weight = model.get_input_embeddings().weight
        for i in range(len(tokenizer)):
            if not tokenizer.decode([i]).strip().isalpha() or i in tokenizer.all_special_ids:
                weight[i] *= 0.01
    model.generation_config.do_sample = True
    return model, tokenizer


@pytest.fixture(scope="module")
def server(lettered, tmp_path_factory):
    if shutil.which("transformers", path=os.path.dirname(sys.executable)) is None:
        pytest.skip("the transformers command is not installed")
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("served")
    save_model(folder / "model", *lettered)
    server = Server(folder / "model", folder / "server.log")
    yield server
    server.kill()


def test_a_remote_seat_plays_beside_local_ones(server, lettered):
    """Werewolf with a model behind an endpoint as the Seer, a local model that is trained, and a scripted player."""
    pytest.importorskip("pettingzoo")
    from agentgym.envs.werewolf import raw_env
    from agentgym.envs.werewolf_players import PlayerPolicy

    from agentgym.rollout import group_tasks
    from agentgym.selfplay import Seat, SelfPlay

    model, tokenizer = copy.deepcopy(lettered)
    remote = OpenAIPolicy(server.model, server.url)
    seats = {
        "Seer": Seat(remote, context="window:1"),
        "Werewolf": Seat(HFPolicy(prepare(model), Renderer(HFTokenizer(tokenizer)), "local"), True, context="window:1"),
        "Villager": Seat(PlayerPolicy("scripted", brief=True)),
    }

    def assign(_, infos):
        return {agent: info["role"] for agent, info in infos.items()}

    config = settings(context_limit=2000, max_turns=60, concurrency=2, step_timeout=60.0)
    table = SelfPlay(lambda: raw_env(players=4, brief=True, parse_retries=1), seats, config, assign)
    games = table.collect(group_tasks(0, 0, 2, 1))
    assert table.stats.dropped_groups == 0
    assert [game.status.value for game in games] == ["done", "done"]
    for game in games:
        assert game.metrics["won/wolves"] + game.metrics["won/village"] == 1
        of = {t.info["seat"]: t for t in game.trajectories.values()}
        seer, wolf = of["Seer"], of["Werewolf"]
        assert seer.turns
        assert (seer.policy, seer.info["trainable"], wolf.info["trainable"]) == ("openai", False, True)
        assert game.trainable == [wolf]
        assert seer.info["prompt_tokens"] > 100
        for turn in seer.turns:
            ids = seer.segments[turn.segment].ids[turn.start : turn.stop]
            assert remote.renderer.decode_reply(ids) == turn.text
        assert rows_of(wolf, 0)
        with pytest.raises(ConfigError, match="not trained on"):
            rows_of(seer, 0)
    with pytest.raises(ConfigError, match="has no weights here"):
        SelfPlay(raw_env, {"Seer": Seat(remote, trainable=True)}, config)


def settings(**changes):
    values = {"max_new_tokens": 6, "parse_limit": 9, "concurrency": 3, "step_timeout": 10.0, "retries": 0}
    return RolloutConfig(**{**values, **changes})


@contextlib.contextmanager
def echo(rounds=2):
    with EnvPool("test/Echo-v0", {"rounds": rounds}) as pool:
        yield pool


def test_an_endpoint_plays_and_says_what_it_costs(server, tmp_path):
    policy = OpenAIPolicy(server.model, server.url)
    with echo() as pool:
        found, played = evaluate(pool, policy, settings(), 4, log=tmp_path / "log.jsonl")
        again, _ = evaluate(pool, policy, settings(), 4)  # another event loop
    assert (found.episodes, found.failed, again.episodes) == (4, 0, 4)
    for trajectory in played:
        assert sum(len(turn.text) for turn in trajectory.turns) > 0
        assert trajectory.info["completion_tokens"] <= 6 * len(trajectory.turns)
        assert trajectory.info["prompt_tokens"] > 10 * len(trajectory.turns)
        for turn in trajectory.turns:
            ids = trajectory.segments[turn.segment].ids[turn.start : turn.stop]
            assert bytes(i for i in ids if i < 256).decode() == turn.text
            assert ids[-1:] == [257] or turn.finish == "length"
            assert all(math.isnan(p) for p in trajectory.segments[turn.segment].logps[turn.start : turn.stop])
    mean = sum(t.info["completion_tokens"] for t in played) / 4
    assert found.tokens.mean == mean
    assert mean != sum(t.action_tokens for t in played) / 4
    stored = sorted(store.read(tmp_path / "log.jsonl"), key=lambda t: t.group)
    assert [t.messages for t in stored] == [t.messages for t in played]


def test_it_writes_what_the_same_model_writes_in_this_process(server, lettered):
    model, tokenizer = copy.deepcopy(lettered)
    local = HFPolicy(prepare(model).eval(), Renderer(HFTokenizer(tokenizer)))
    greedy = settings(temperature=0.0)
    with echo() as pool:
        _, theirs = evaluate(pool, OpenAIPolicy(server.model, server.url), greedy, 6)
        _, ours = evaluate(pool, local, greedy, 6)
    first = [(a.turns[0].text, b.turns[0].text) for a, b in zip(theirs, ours, strict=True)]
    assert len({text for _, text in first}) > 1
    assert all(a == b for a, b in first), first
    assert [t.messages[:2] for t in theirs] == [t.messages[:2] for t in ours]


def test_seeds_reach_the_endpoint(server):
    policy, alone = OpenAIPolicy(server.model, server.url), settings(concurrency=1)
    with echo() as pool:
        runs = [evaluate(pool, policy, alone, 3, seed=seed)[1] for seed in (1, 1, 2)]
    texts = [[turn.text for t in run for turn in t.turns] for run in runs]
    assert texts[0] == texts[1] != texts[2]


def test_it_cannot_be_trained_on(server):
    with echo() as pool:
        _, [trajectory] = evaluate(pool, OpenAIPolicy(server.model, server.url, "openai:m@x"), settings(), 1)
    for per_turn in (False, True):
        with pytest.raises(ConfigError, match="written by openai:m@x, whose tokens are not known"):
            rows_of(trajectory, 0, per_turn)


async def attempt(policy):
    from agentgym.policies.base import Request
    from agentgym.seeding import turn_rng

    request = Request([1], 4, turn_rng(0, 0), messages=[{"role": "user", "content": "hi"}])
    return await policy.open().generate(request)


async def test_what_goes_wrong_is_one_clear_error(server):
    refused = OpenAIPolicy("m", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(EngineError, match=r"^cannot reach http://127\.0\.0\.1:\d+/v1: .*is the server running"):
        await attempt(refused)
    with pytest.raises(EngineError, match=r"refused the request for model 'nope': 400 .*Server is pinned to"):
        await attempt(OpenAIPolicy("nope", server.url))
    with pytest.raises(EngineError, match="refused the request for model 'm': 404 "):
        await attempt(OpenAIPolicy("m", server.url.removesuffix("/v1")))
    with pytest.raises(EngineError, match=r"did not answer within 0\.001 s"):
        await attempt(OpenAIPolicy(server.model, server.url, timeout=0.001))


def test_a_server_that_dies_in_the_middle_stops_the_evaluation_and_it_is_gone_on_with(server, tmp_path, capsys):
    spec = f"openai:{server.model}@{server.url}"
    arguments = ["eval", "--env", "helpers_envs:test/Echo-v0", "--policy", spec, "--episodes", "16", "--json"]
    arguments += ["--out", str(tmp_path), "--set", "rollout.max_new_tokens=4", "rollout.concurrency=2"]
    arguments += ["rollout.retries=0"]

    def kill_after_five():
        log = next(iter(tmp_path.glob("*.jsonl")), None)
        while log is None or log.read_bytes().count(b"\n") < 6:
            time.sleep(0.01)
            log = next(iter(tmp_path.glob("*.jsonl")), None)
        server.kill()

    killer = threading.Thread(target=kill_after_five)
    killer.start()
    try:
        assert main(arguments) == 2
        killer.join()
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1
        assert "of the last 8 groups failed" in err or "failed for reasons outside the policy" in err
        assert f"engine_error: cannot reach {server.url}" in err
        assert json.loads(out)["kind"] == "TooManyFailures"
    finally:
        killer.join()
        server.start()
    [log] = tmp_path.glob("*.jsonl")
    good = {t.group for t in store.read(log) if not t.status.failed}
    assert 5 <= len(good) < 16
    before = log.read_bytes()
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["episodes"], result["failed"], result["policy"]) == (16, 0, spec)
    assert log.read_bytes().startswith(before)
    added = store.read(log)[len(before.splitlines()) - 1 :]
    assert not good & {t.group for t in added}


# ---- servers that misbehave ----------------------------------------------------------------------------


class Odd(BaseHTTPRequestHandler):
    """Answers as `mode` says, keeping what it was sent."""

    mode, seen = "", []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.headers, body))
        message = {"role": "assistant", "content": "go <|im_end|> é"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        good = {**answer, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        if self.mode == "key":
            self.say(401, {"error": {"message": f"bad key: {self.headers['authorization']}"}})
        elif self.mode == "no choices":
            self.say(200, {**answer, "choices": []})
        elif self.mode == "a page":
            self.say(200, "<html>hello</html>", "text/html")
        elif self.mode == "cut":
            self.say(200, '{"id": ')
        elif self.mode == "renamed" and "max_tokens" in body:
            self.say(400, {"error": {"message": "'max_tokens' is not supported: use 'max_completion_tokens' instead."}})
        else:
            self.say(200, good)

    def say(self, status, value, kind="application/json"):
        data = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def odd():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Odd.seen = []
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("no choices", "answered without a message"),
        ("a page", "answered without a message"),
        ("cut", "answered with something else than a chat completion"),
    ],
)
async def test_answers_that_are_none(odd, mode, message):
    Odd.mode = mode
    with pytest.raises(EngineError, match=message):
        await attempt(OpenAIPolicy("m", odd))


async def test_what_is_sent_and_what_is_kept(odd):
    Odd.mode = ""
    policy = OpenAIPolicy("some/model", odd)
    made = await attempt(policy)
    [(headers, body)] = Odd.seen
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("some/model", 4, 1.0, 1.0)
    assert headers["Authorization"] == "Bearer none"
    assert bytes(made.ids[:-1]).decode() == "go <|im_end|> é"
    assert (made.ids[-1], made.finish, made.version, dict(made.usage)) == (257, "stop", -1, {})
    assert policy.renderer.decode_reply(made.ids) == "go <|im_end|> é"


def test_images_are_sent_as_parts(odd):
    """A screen goes out as PNG in a data URL, in front of what the environment says; the rest stays text."""
    with EnvPool("helpers_vision:test/Square-v0", {"rounds": 2, "say": "Click <|image:0:1x1|> "}) as pool:
        Odd.mode = ""
        [group] = Rollout(pool, OpenAIPolicy("m", odd), settings(max_turns=2)).collect([Task(1, 1, "g", 0, 0)])
    (trajectory,) = group.trajectories
    pictures = list(trajectory.pictures.values())
    _, (_, body) = Odd.seen
    system, first, reply, second = body["messages"]
    assert (system["content"][:5], reply["content"]) == ("Click", "go <|im_end|> é")
    for message, picture in ((first, pictures[0]), (second, pictures[1])):
        shown, said = message["content"]
        assert shown == {"type": "image_url", "image_url": {"url": picture.url}}
        assert said["text"].startswith("Click < |image:0:1x1|> ")
    with pytest.raises(ConfigError, match="evaluated but not trained on"):
        rows_of(trajectory, 0)


async def test_newer_models_name_the_limit_otherwise(odd):
    Odd.mode = "renamed"
    policy = OpenAIPolicy("m", odd)
    await attempt(policy)
    await attempt(policy)
    assert [("max_tokens" in b, b.get("max_completion_tokens")) for _, b in Odd.seen] == [
        (True, None),
        (False, 4),
        (False, 4),
    ]


def test_the_key_is_sent_and_never_shown_or_stored(odd, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    arguments = ["eval", "--env", "helpers_envs:test/Echo-v0", "--policy", f"openai:m@{odd}", "--episodes", "8"]
    arguments += ["--out", str(tmp_path), "--set", "rollout.retries=0"]
    Odd.mode = "key"
    assert main(arguments) == 2
    Odd.mode = ""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers, _ in Odd.seen)
    assert "bad key: Bearer ***" in err
    assert KEY not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not any(KEY in path.read_text() for path in files)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("openai:model", "openai:MODEL@http"),
        ("openai:", "openai:MODEL@http"),
        ("openai:@http://127.0.0.1:1/v1", "openai:MODEL@http"),
        ("openai:m@127.0.0.1:8000", "openai:MODEL@http"),
        ("openai:m@ftp://me:secret@host/v1", "openai:MODEL@http"),
        ("openai:m@http://127.0.0.1:99999/v1", "cannot be read"),
        ("openai:m@http://me:secret@127.0.0.1:99999/v1", "cannot be read"),
        ("openai:m@http:///v1", "cannot be read"),
        ("openai:m@https://me:secret@host/v1", "no user, password"),
        ("openai:m@https://host/v1?key=secret", "no user, password"),
        ("openai:m@https://api.example.com/v1", "set OPENAI_API_KEY"),
    ],
)
def test_wrong_addresses(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_policy(spec)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1"])
def test_loopback_needs_no_key_and_names_may_hold_an_at(url):
    policy = make_policy(f"openai:a@b/c@{url}")
    assert (policy.model, policy.url, policy.name) == ("a@b/c", url, f"openai:a@b/c@{url}")


def test_the_client_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "agentgym.policies.openai")
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[openai\]"):
        make_policy("openai:m@http://127.0.0.1:1/v1")


async def test_it_has_no_weights_and_no_scores():
    policy = OpenAIPolicy("m", "http://127.0.0.1:1/v1")
    with pytest.raises(EngineError, match="cannot score"):
        await policy.score([1, 2], 1)
    with pytest.raises(EngineError, match="evaluation only"):
        policy.load_weights({}, 1)


def test_an_evaluation_without_a_server_ends_with_one_error():
    helpers_envs.forget()
    policy = OpenAIPolicy("m", f"http://127.0.0.1:{free_port()}/v1")
    with echo() as pool, pytest.raises(TooManyFailures, match=r"8 of the last 8 groups failed.*cannot reach"):
        evaluate(pool, policy, settings(), 30)
