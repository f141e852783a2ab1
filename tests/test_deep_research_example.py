"""examples/05_deep_research.py against a real endpoint: what each strategy sends, round by round."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_judge import endpoint

from agentgym import store
from agentgym.rounds import write_round
from agentgym.tool_calls import Call

EXAMPLE = Path(__file__).parents[1] / "examples" / "05_deep_research.py"
CALL = Call("search", {"query": ["Norway capital"]})


def searcher(request):
    """Searches until it is told that this is the last round or it has seen 3 responses, then says what it read."""
    texts = [m["content"] for m in request["messages"]]
    if "Oslo" in texts[-1] and ("last round" in texts[-1] or sum("Oslo" in t for t in texts) > 2):
        return write_round("It is Oslo.", "Oslo")
    return write_round("I look for the capital of Norway.", CALL)


def test_the_example_compares_the_two(tmp_path):
    pytest.importorskip("openai")
    with endpoint(searcher) as (url, asked):
        command = [sys.executable, str(EXAMPLE), "m", url, "--episodes", "2", "--rounds", "4", "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^react +success \d+\.\d% \[.*\]  4\.0 rounds", done.stdout), done.stdout
    assert re.search(r"(?m)^workspace +success \d+\.\d% \[.*\]  4\.0 rounds", done.stdout), done.stdout
    react = [r for r in asked if "The next round sees your report" not in r["messages"][0]["content"]]
    workspace = [r for r in asked if r not in react]
    assert (len(react), len(workspace)) == (8, 8)
    assert sorted({len(r["messages"]) for r in react}) == [2, 4, 6, 8]
    assert {len(r["messages"]) for r in workspace} == {2}
    assert sum("tools" in r for r in workspace) == 6, "none in the last rounds"
    assert all("tools" in r for r in react)
    for name in ("react", "workspace"):
        played = store.read(tmp_path / f"{name}.jsonl")
        assert [t.turns[-1].text for t in played] == [write_round("It is Oslo.", "Oslo")] * 2
        assert all(t.turns[0].calls[0].output.count("Oslo") for t in played)
    assert (tmp_path / "report.html").is_file()
