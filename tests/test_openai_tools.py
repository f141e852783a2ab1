"""Tools over an endpoint: a real local server answers with native tool calls or with text, and plays real episodes."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentgym.actions import Tools
from agentgym.env_worker import EnvPool
from agentgym.errors import EngineError
from agentgym.evaluate import evaluate
from agentgym.policies.base import Request
from agentgym.rollout import RolloutConfig
from agentgym.seeding import turn_rng
from agentgym.tool_calls import Call, parse_calls

OpenAIPolicy = pytest.importorskip("agentgym.policies.openai").OpenAIPolicy

ID = "agentgym/PythonMath-v0"
SCHEMA = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}


class Solver(BaseHTTPRequestHandler):
    """Solves the problem `power_tower`: calls python, then submits what it said; writes its calls as `style` says."""

    style, bodies = "native", []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append(body)
        if "tools" in body and self.style == "refuses":
            self.say(400, {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}})
            return
        last = body["messages"][-1]["content"]
        if asked := re.search(r"remainder of (\d+)\^\((\d+)\^(\d+)\) when it is divided by (\d+)", last):
            a, b, c, m = asked.groups()
            calls = [("python", {"code": f"print(pow({a}, {b}**{c}, {m}))"})]
        else:
            calls = [("submit", {"answer": last.strip()})]
        message = {"role": "assistant", "content": "I compute."}
        if self.style == "native" and "tools" in body:
            functions = [{"name": n, "arguments": json.dumps(a)} for n, a in calls]
            message["content"] = None
            message["tool_calls"] = [
                {"id": f"c{i}", "type": "function", "function": f} for i, f in enumerate(functions)
            ]
        elif self.style == "garbled":
            message["tool_calls"] = [
                {"id": "c", "type": "function", "function": {"name": "python", "arguments": '{"x'}}
            ]
        elif self.style == "llama":
            name, arguments = calls[0]
            message["content"] = json.dumps({"name": name, "parameters": arguments})
        else:
            name, arguments = calls[0]
            call = json.dumps({"name": name, "arguments": arguments})
            message["content"] = f"<think>\nhm\n</think>\n<tool_call>\n{call}\n</tool_call>"
        choice = {"index": 0, "finish_reason": "tool_calls" if "tool_calls" in message else "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        self.say(200, {**answer, "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})

    def say(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def solver(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Solver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Solver.style, Solver.bodies = "native", []
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("style", ["native", "refuses", "hermes", "llama"])
def test_a_model_behind_an_endpoint_plays(solver, bubblewrap, style):
    Solver.style = style
    kwargs = {"backend": "bubblewrap", "task": "power_tower"}
    with EnvPool(ID, kwargs) as pool:
        result, played = evaluate(pool, OpenAIPolicy("m", solver), RolloutConfig(max_new_tokens=200, concurrency=2), 4)
    assert (result.success.mean, result.failed, result.turns.mean) == (1.0, 0, 2.0)
    assert all(t.info["completion_tokens"] == 6 for t in played)
    with_tools = [body for body in Solver.bodies if "tools" in body]
    assert len(with_tools) == (len(Solver.bodies) if style != "refuses" else len(Solver.bodies) - 8)
    for body in with_tools:
        assert [tool["function"]["name"] for tool in body["tools"]] == ["python", "submit"]
    assert all('"name": "submit"' in body["messages"][0]["content"] for body in Solver.bodies)
    if style == "refuses":
        assert 1 <= len(with_tools) <= 2  # those that were on their way when the first was refused
    if style == "native":
        text = played[0].turns[0].text
        assert text.startswith('<tool_call>\n{"name": "python", "arguments": {"code": "print(pow(')
        assert played[0].messages[2] == {"role": "assistant", "content": text}


async def ask(policy, tools):
    request = Request([1], 50, turn_rng(0, 0), messages=[{"role": "user", "content": "hi"}], tools=tools)
    return policy.renderer.decode_reply((await policy.open().generate(request)).ids)


async def test_a_turn_without_tools_offers_none(solver):
    Solver.style = "hermes"
    await ask(OpenAIPolicy("m", solver), [])
    assert "tools" not in Solver.bodies[0]


async def test_what_is_said_beside_a_call_stays_before_it(solver):
    Solver.style = "garbled"
    text = await ask(OpenAIPolicy("m", solver), [SCHEMA])
    assert text.startswith("I compute.\n<tool_call>\n")
    assert Solver.bodies[0]["tools"] == [SCHEMA]
    error = Tools().parse(text, ()).error
    assert "arguments of python are not valid JSON" in error


async def test_a_native_call_reads_like_a_written_one(solver):
    text = await ask(OpenAIPolicy("m", solver), [SCHEMA])
    assert parse_calls(text) == [Call("submit", {"answer": "hi"})]


async def test_other_refusals_are_errors(solver):
    class Refuses(Solver):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.say(400, {"error": {"message": "the context is too long"}})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(EngineError, match="the context is too long"):
            await ask(OpenAIPolicy("m", f"http://127.0.0.1:{server.server_port}/v1"), [SCHEMA])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
