"""Golden transcripts: a change of a single character, reward or command is found and named."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import gymnasium as gym
import pytest
from helpers_broken_envs import Good

from agentgym import cli, golden
from agentgym.errors import ConfigError

ID = "broken/Good-v0"


@pytest.fixture
def file(tmp_path):
    path = golden.path_of(tmp_path, ID, {})
    golden.write(path, ID, {})
    return path


def test_a_transcript_reads_like_a_game(file):
    lines = file.read_text().split("\n")
    header = {"agentgym_golden": 1, "env": ID, "kwargs": {}, "seeds": [0, 1], "steps": 20, "engine": {}}
    assert json.loads(lines[0]) == header
    assert lines[1:4] == ["seed 0", "| Say the colour that is named.", "| A new game. Say green."]
    assert lines[4] == "commands coral; ecru; fawn; green; pass"
    assert json.loads(lines[5].removeprefix("info "))["expert_action"] == "green"
    assert lines[6:9] == ["> green", "| Right. Say fawn.", "commands coral; ecru; fawn; green; pass"]
    assert json.loads(lines[9].removeprefix("info ")) == {"expert_action": "fawn", "score": 1}
    assert lines[-2:] == ["terminated", ""]
    assert {"reward 1.0", "reward 0.0"} < set(lines)  # the expert, and now and then another command
    assert golden.record(ID, {}) == file.read_text()
    assert golden.compare(file) is None


class OtherText(Good):
    def text(self, answer):
        return super().text(answer) + ("." if self.count == 3 else "")


class OtherInstructions(Good):
    instructions = "Say it."


class OtherCommands(Good):
    def info(self):
        found = super().info()
        return found | {"admissible_commands": [*found["admissible_commands"], "think"]}


class OtherReward(Good):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 2 * reward, *rest


class OtherLimit(Good):
    max_steps = 3


class OtherInfo(Good):
    def info(self):
        return super().info() | {"lives": 3}


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        (OtherText, "line 18: '| No. Say ecru.' was written, '| No. Say ecru..' comes now"),
        (OtherInstructions, "line 3: '| Say the colour that is named.' was written, '| Say it.' comes now"),
        (OtherCommands, "line 5: 'commands coral; ecru; fawn; green; pass' was written, 'commands coral; ecru; fawn;"),
        (OtherReward, "line 11: 'reward 1.0' was written, 'reward 2.0' comes now"),
        (OtherLimit, "was written, 'truncated' comes now"),
        (OtherInfo, 'line 6: \'info {"expert_action": "green", "max_score": 5,'),
    ],
)
def test_every_kind_of_change_is_found(file, monkeypatch, changed, seen):
    monkeypatch.setitem(gym.registry, ID, replace(gym.spec(ID), entry_point=changed))
    found = golden.compare(file)
    assert seen in found
    assert str(file) in found
    assert "needs a new version of the id" in found
    assert f"agentgym check {ID} --golden {file.parent} --write" in found


def test_another_version_of_the_engine_is_named(file):
    lines = file.read_text().split("\n")
    header = json.loads(lines[0]) | {"engine": {"textworld": "1.6"}}
    file.write_text("\n".join([json.dumps(header), *lines[1:]]))
    assert golden.compare(file) is None
    file.write_text("\n".join([json.dumps(header), *lines[1:-1]]))
    assert "(written with {'textworld': '1.6'}, installed is {})" in golden.compare(file)


@pytest.mark.parametrize("change", ["cut", "longer"])
def test_a_file_that_ends_elsewhere_differs(file, change):
    text = file.read_text()
    file.write_text(text[:-12] if change == "cut" else text + "| more\n")
    assert "was written" in golden.compare(file)


def test_files_are_named_after_arguments(tmp_path):
    assert golden.path_of(tmp_path, "agentgym/A-v0", {}).name == "A-v0.txt"
    assert golden.path_of(tmp_path, "a/A-v1", {"game": "twc", "b": 1}).name == "A-v1.b=1.game=twc.txt"
    assert golden.path_of(tmp_path, "A-v0", {"x": "../../etc"}).parent == tmp_path
    different = [golden.path_of(tmp_path, "A-v0", {"p": {"n": n, "text": "x" * 300}}) for n in (1, 2)]
    assert different[0] != different[1]
    assert all(len(os.fsencode(path.name)) < 200 for path in different)


def test_the_command_writes_and_compares(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "golden"
    base = ["check", ID, "--golden", str(folder)]
    assert cli.main(base) == 2
    assert "no golden transcript" in capsys.readouterr().err
    assert cli.main([*base, "--write"]) == 0
    assert "1 golden transcripts written" in capsys.readouterr().out
    assert cli.main([*base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "passed": True,
        "failures": [],
        "files": [str(folder / "Good-v0.txt")],
        "skipped": {},
    }
    monkeypatch.setitem(gym.registry, ID, replace(gym.spec(ID), entry_point=OtherReward))
    assert cli.main(base) == 1
    assert "'reward 1.0' was written" in capsys.readouterr().out
    assert cli.main([*base, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], [f["check"] for f in found["failures"]]) == (False, ["golden"])
    before = (folder / "Good-v0.txt").read_bytes()
    monkeypatch.setitem(gym.registry, ID, replace(gym.spec(ID), entry_point="nowhere:Env"))
    assert cli.main([*base, "--write"]) == 2
    assert (folder / "Good-v0.txt").read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["Good-v0.txt"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed 0\n| no header\n",
        "[1, 2]\n",
        "{}\n",
        '{"agentgym_golden": 2}\n',
        '{"agentgym_golden": 1, "env": "broken/Good-v0"}\n',
        '{"agentgym_golden": 1, "env": 3, "kwargs": {}, "seeds": [0], "steps": 2, "engine": {}}\n',
        '{"agentgym_golden": 1, "env": "broken/Good-v0", "kwargs": {}, "seeds": [-1], "steps": 2, "engine": {}}\n',
    ],
)
def test_what_is_no_golden_transcript_is_named(file, text):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        golden.compare(file)
    assert str(file) in str(caught.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"not a golden transcript"):
        golden.compare(file)
