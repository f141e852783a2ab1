"""Evaluation in the sandboxed environments: every call of a tool is in the log, the store and the page."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from agentgym.envs.python_math import PythonMathEnv

from agentgym import store
from agentgym.cli import main
from agentgym.env_worker import EnvPool
from agentgym.evaluate import eval_tasks, evaluate
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.report import write_report
from agentgym.rollout import RolloutConfig
from agentgym.tool_calls import canonical, parse_calls

EXAMPLE = Path(__file__).parents[1] / "examples" / "03_eval_endpoint.py"
MIXED = canonical(
    parse_calls(
        json.dumps(
            [
                {"name": "bash", "arguments": {"command": "echo one; exit 3"}},
                {"name": "read_file", "arguments": {"path": "nowhere"}},
                {"name": "python", "arguments": {"code": "while True: pass"}},
                {"name": "dance", "arguments": {}},
            ]
        )
    )
)
SUBMIT = '{"name": "submit", "arguments": {"answer": "done"}}'


@pytest.mark.parametrize("processes", [0, 1])
def test_calls_are_kept_with_output_status_and_time(docker_host, tmp_path, processes):
    config = RolloutConfig(max_turns=3, concurrency=2)
    log = tmp_path / "canned.jsonl"
    with EnvPool("agentgym/Shell-v0", {"timeout": 0.5}, processes) as pool:
        _, played = evaluate(pool, CannedPolicy([MIXED, SUBMIT]), config, 2, log=log)
    for trajectory in played:
        first, second = trajectory.turns
        assert [(c.name, c.status, c.exit_code) for c in first.calls] == [
            ("bash", "ok", 3),
            ("read_file", "error", None),
            ("python", "timeout", None),
            ("dance", "error", None),
        ]
        assert json.loads(first.calls[0].arguments) == {"command": "echo one; exit 3"}
        assert first.calls[0].output == "one\n[exit code 3]"
        assert "no tool 'dance'" in first.calls[3].output
        assert 0.5 <= first.calls[2].seconds < 5
        assert sum(c.seconds for c in first.calls) <= first.env_s
        assert [c.name for c in second.calls] == ["submit"]
    assert store.read(log) == sorted(played, key=lambda t: [p.group for p in store.read(log)].index(t.group))
    pytest.importorskip("pyarrow")
    store.write(tmp_path / "all.parquet", played)
    assert store.read(tmp_path / "all.parquet") == played


def test_an_older_log_without_calls_is_read(tmp_path, docker_host):
    with EnvPool("agentgym/Shell-v0") as pool:
        _, played = evaluate(pool, ExpertPolicy(), RolloutConfig(max_turns=10), 1)
    data = played[0].to_dict()
    for turn in data["turns"]:
        assert turn.pop("calls")
    assert not any(turn.calls for turn in type(played[0]).from_dict(data).turns)


@pytest.mark.parametrize("name", ["PythonMath", "Shell", "DataScience"])
def test_command_line_keeps_a_log_and_goes_on_with_it(docker_host, tmp_path, name, capsys):
    arguments = ["eval", "--env", f"agentgym/{name}-v0", "--policy", "expert", "--out", str(tmp_path), "--json"]
    assert main([*arguments, "--episodes", "1"]) == 0
    first = store.read(tmp_path / "expert.jsonl")
    capsys.readouterr()
    assert main([*arguments, "--episodes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    both = store.read(tmp_path / "expert.jsonl")
    assert both[:1] == first
    assert len(both) == 2
    for trajectory in both:
        calls = [call for turn in trajectory.turns for call in turn.calls]
        assert calls
        assert all(call.status == "ok" and call.seconds > 0 for call in calls)
    page = write_report(tmp_path).read_text()
    assert '"status":"ok"' in page


class Expert(BaseHTTPRequestHandler):
    """An endpoint that knows how to solve the problems: it calls the tools in OpenAI's format."""

    plans: dict[str, list] = {}  # noqa: RUF012
    asked = 0

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked += 1
        assert {tool["function"]["name"] for tool in request["tools"]} == {"python", "submit"}
        said = [m for m in request["messages"] if m["role"] != "system"]
        plan = self.plans[said[0]["content"]]
        turn = sum(m["role"] == "assistant" for m in said)
        if turn < len(plan):
            name, arguments = plan[turn].name, plan[turn].arguments
        else:
            name, arguments = "submit", {"answer": said[-1]["content"].rpartition("\n")[2]}
        function = {"name": name, "arguments": json.dumps(arguments)}
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"id": f"call{turn}", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        body = json.dumps({**answer, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(docker_host):
    env = PythonMathEnv()
    for task in eval_tasks(0, 4):
        text, _ = env.reset(seed=task.env_seed, options={"split": "test"})
        Expert.plans[text] = list(env._problem.plan)
    env.close()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Expert)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_example_evaluates_an_endpoint(endpoint, tmp_path):
    pytest.importorskip("openai")
    command = [sys.executable, str(EXAMPLE), "some-model", endpoint, "--out", str(tmp_path / "out"), "--episodes"]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "some-model: success 100.0% [" in done.stdout
    done = subprocess.run([*command, "4"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    played = store.read(tmp_path / "out" / "model.jsonl")
    assert len(played) == 4
    assert all(t.success for t in played)
    assert Expert.asked == sum(len(t.turns) for t in played), "the first two must not be asked for again"
    assert [c.name for c in played[0].turns[-1].calls] == ["submit"]
    assert played[0].turns[0].calls[0].output.rpartition("\n")[2] in played[0].turns[-1].calls[0].arguments
    assert (tmp_path / "out" / "report.html").is_file()
