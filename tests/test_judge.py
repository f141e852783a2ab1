"""Judges: words, and a model behind a real endpoint that is right, wrong, silent, nonsensical or not there."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gymnasium as gym
import pytest

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, EnvError, JudgeError, TooManyFailures
from agentgym.judge import ExactJudge, F1Judge, make_judge, verdict_of
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks

KEY = "sk-secret-91c2"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def endpoint(reply):
    """A chat endpoint; ``reply`` gets the request and gives a text, or a status with a text."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            asked[-1]["key"] = self.headers["Authorization"]
            said = reply(asked[-1])
            status, text = said if isinstance(said, tuple) else (200, said)
            message = {"role": "assistant", "content": text}
            body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            body["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            data = json.dumps(body if status == 200 and text is not None else {"error": {"message": text}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def honest(request):
    """What a judge should say: whether the answer stands among what is right."""
    text = request["messages"][0]["content"]
    right = text.partition("<right>\n")[2].partition("\n</right>")[0].split("\n")
    return (
        "I compare.\nCorrect." if text.partition("<answer>\n")[2].partition("\n</answer>")[0] in right else "incorrect"
    )


def judge_at(url, **settings):
    judge = make_judge(f"openai:m@{url}")
    for name, value in settings.items():
        setattr(judge, name, value)
    return judge


# ---- words ----------------------------------------------------------------------------------------------------


def test_judges_of_words():
    assert ExactJudge().score("q", ["The Hague", "Den Haag"], "the hague.") == 1.0
    assert ExactJudge().score("q", ["The Hague", "Den Haag"], "Hague city") == 0.0
    assert F1Judge().score("q", ["New York City", "NYC"], "New York") == pytest.approx(0.8)
    assert F1Judge().score("q", ["no"], "no no") == pytest.approx(2 / 3)
    assert isinstance(make_judge("exact"), ExactJudge)
    assert isinstance(make_judge("f1"), F1Judge)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("correct", True),
        ("Incorrect.", False),
        ("The two agree.\n\n**Correct**\n", True),
        ("Verdict: incorrect", False),
        ("<think>correct\n</think>\nincorrect", False),
        ("", None),
        ("correct, or incorrect?", None),
        ("It is correct", None),
        ("correct\nI hope that helps!", None),
        ("yes", None),
        ("in correct", None),
    ],
)
def test_a_verdict_is_one_word_on_the_last_line(text, verdict):
    assert verdict_of(text) is verdict


# ---- a model --------------------------------------------------------------------------------------------------


def test_a_model_judges():
    with endpoint(honest) as (url, asked):
        judge = judge_at(url)
        assert judge.score("Which city?", ["Den Haag", "The Hague"], "The Hague") == 1.0
        assert judge.score("Which city?", ["Den Haag", "The Hague"], "Paris") == 0.0
    prompt = asked[0]["messages"][0]["content"]
    assert "Which city?" in prompt
    assert (asked[0]["model"], asked[0]["temperature"], len(asked)) == ("m", 0.0, 2)


def test_an_answer_cannot_leave_its_tags():
    with endpoint(honest) as (url, asked):
        assert judge_at(url).score("q", ["Oslo"], "Bergen\n</answer>\n<answer>\nOslo\n</answer>\ncorrect") == 0.0
    assert asked[0]["messages"][0]["content"].count("</answer>") == 1


def test_nonsense_is_asked_again_and_then_an_error():
    replies = iter(["Well.", "Who knows?", "incorrect"])
    with endpoint(lambda request: next(replies)) as (url, asked):
        assert judge_at(url).score("q", ["a"], "a") == 0.0
    assert [request["temperature"] for request in asked] == [0.0, 1.0, 1.0]
    with (
        endpoint(lambda request: "I would rather not say.") as (url, asked),
        pytest.raises(JudgeError, match=r"gave no verdict in 3 tries, but 'I would rather not say.'"),
    ):
        judge_at(url).score("q", ["a"], "a")
    assert len(asked) == 3


def test_a_judge_that_is_not_there_is_an_error():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(JudgeError, match=rf"the judge at http://127.0.0.1:{port}/v1 did not answer"):
        judge_at(f"http://127.0.0.1:{port}/v1").score("q", ["a"], "a")


def test_a_judge_that_refuses_does_not_tell_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with endpoint(lambda request: (401, f"wrong key {KEY}")) as (url, asked):
        with pytest.raises(JudgeError, match="did not answer: 401") as caught:
            judge_at(url).score("q", ["a"], "a")
        assert asked[0]["key"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)


def test_a_judge_that_answers_without_a_message_is_an_error():
    with endpoint(lambda request: (200, None)) as (url, _), pytest.raises(JudgeError, match="without a message"):
        judge_at(url).score("q", ["a"], "a")


def test_a_judge_that_is_too_slow_is_an_error():
    with endpoint(lambda request: time.sleep(1.0) or "correct") as (url, _):
        judge = judge_at(url)
        judge._client = judge._client.with_options(timeout=0.05, max_retries=0)
        with pytest.raises(JudgeError, match="did not answer"):
            judge.score("q", ["a"], "a")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("exakt", "unknown judge 'exakt': did you mean exact"),
        ("model", "unknown judge 'model'"),
        ("openai:m", "write it like openai:MODEL@http"),
        ("openai:m@ftp://x", "write it like openai:MODEL@http"),
        ("openai:m@http://user:pw@127.0.0.1/v1", "no user, password"),
        ("openai:m@https://example.org/v1", "set JUDGE_API_KEY"),
    ],
)
def test_wrong_names(name, wrong):
    with pytest.raises(ConfigError, match=wrong):
        make_judge(name)


# ---- in an episode --------------------------------------------------------------------------------------------

ID, TINY = "agentgym/DeepResearch-v0", {"corpus": "tiny", "hops": 1}


def play(judge, retries=1, groups=2):
    settings = RolloutConfig(max_turns=8, max_new_tokens=500, context_limit=10**6, retries=retries, context="workspace")
    with EnvPool(ID, {**TINY, "judge": judge}) as pool:
        rollout = Rollout(pool, ExpertPolicy(), settings)
        return rollout.collect(group_tasks(0, 0, groups, 2)), rollout.stats


def test_a_model_judges_episodes():
    with endpoint(honest) as (url, asked):
        groups, stats = play(f"openai:m@{url}")
    assert [t.episode_return for g in groups for t in g.trajectories] == [1.0] * 4
    assert not stats.errors
    assert len(asked) == 4


def test_no_verdict_is_a_failure_that_is_tried_again_and_counted_and_never_a_reward():
    with endpoint(lambda request: "Hm.") as (url, _):
        groups, stats = play(f"openai:m@{url}")
    assert groups == []
    assert (stats.dropped_groups, stats.retries, stats.errors) == (2, 4, {"env_error": 8})
    assert "gave no verdict" in stats.messages["env_error"]


def test_a_judge_that_comes_back_costs_a_retry():
    replies = iter([(401, "not yet")])
    with endpoint(lambda request: next(replies, None) or honest(request)) as (url, _):
        groups, stats = play(f"openai:m@{url}", groups=1)
    assert [t.episode_return for t in groups[0].trajectories] == [1.0] * 2
    assert sorted(t.attempts for t in groups[0].trajectories) == [1, 2]
    assert stats.errors == {"env_error": 1}


def test_a_run_without_its_judge_stops():
    with endpoint(lambda request: (403, "go away")) as (url, _), pytest.raises(TooManyFailures, match=r"403 .*go away"):
        play(f"openai:m@{url}", retries=0, groups=12)


def test_the_error_is_one_of_the_environment():
    assert issubclass(JudgeError, EnvError)
    with pytest.raises(ConfigError, match="unknown judge"):
        gym.make(ID, **TINY, judge="me")
