"""Games in the report: replayed from the trajectories, watched in a real browser, and absent where there are none."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers_browser import Page
from helpers_werewolf import play_werewolf
from run_folder import make_run

from agentgym import latents_file, store
from agentgym.clusters import Clusters
from agentgym.latents import Latents, relative
from agentgym.report import write_report
from agentgym.types import Candidate

PAYLOAD = "</script><img src=x onerror=\"document.title='pwned'\"> player_1"
ROLES = ("Werewolf", "Seer", "Doctor", "Villager")


class NoEncoder:
    name = "not a name of an encoder"

    def encode(self, texts):
        raise AssertionError("a report encodes nothing")


def save_latents(folder, texts):
    """Latent strategies of the Werewolf: the place of each text."""

    def clusters(name, some):
        m = len(some)
        return Clusters(
            name, max(1, m), np.eye(max(1, m)), some, np.ones(m), np.arange(m), np.zeros(m), np.zeros(max(1, m), int)
        )

    latents_file.save(
        Latents(NoEncoder(), [clusters(r, texts if r == "Werewolf" else ()) for r in ROLES], clusters("public", texts)),
        folder,
    )


@pytest.fixture(scope="module")
def games():
    seven, _ = play_werewolf(0, players=7, parity="gt")
    four, _ = play_werewolf(1, players=4, parity="gt")
    return [list(game.trajectories.values()) for game in (seven, four)]


@pytest.fixture
def run(tmp_path, games):
    """A run folder with a whole game, one of which one seat was stored, and one that is damaged."""
    folder = tmp_path / "table"
    (folder / "trajectories").mkdir(parents=True)
    (folder / "config.yaml").write_text("game:\n  players: 7\n  parity: gt\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    whole, damaged = copy.deepcopy(games[0]), copy.deepcopy(games[0])
    for trajectory in damaged:
        trajectory.info["game"] = f"cut {PAYLOAD}"
        if "actions" in trajectory.info:
            trajectory.info["actions"] = trajectory.info["actions"][:-8]
    for trajectory in whole:
        if trajectory.info.get("role") == "Werewolf":
            trajectory.turns[1].candidates = [Candidate([1], 1, 0.0)] * 3
    store.write(folder / "trajectories" / "step_00001.jsonl", [*whole, *damaged])
    alone = next(t for t in games[0] if "actions" in t.info)
    store.write(folder / "trajectories" / "eval_00000.jsonl", [alone])
    return folder


def embedded(page):
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def speeches(game):
    return [event for event in game["events"] if event["kind"] == "speech"]


def test_games_of_every_file_are_replayed_and_damaged_ones_named(run, games):
    data = embedded(write_report(run).read_text())
    index = data["index"]
    assert index["files"] == ["eval_00000", "step_00001"]
    end = next(t.info for t in games[0] if "actions" in t.info)
    facts = {"id": "00000-000-00", "winner": end["winner"], "players": 7, "rounds": data["g0"]["rounds"]}
    assert index["games"]["list"] == [{"file": 0, **facts}, {"file": 1, **facts}]
    [skipped] = index["games"]["skipped"]
    assert (skipped["id"], skipped["file"]) == (f"cut {PAYLOAD}", 1)
    assert "actions cannot be played" in skipped["why"]
    assert [p["trajectory"] for p in data["g1"]["players"]] == list(range(1, 8))
    assert [p["trajectory"] for p in data["g0"]["players"]].count(None) == 6
    assert "g2" not in data
    for event in speeches(data["g1"]):
        turn = data[f"t{1 + event['seat']}"]["turns"][event["turn"]]
        assert json.loads(turn["text"])["statement"] == event["text"]
    assert {e["candidates"] for e in speeches(data["g1"])} == {None, 3}


def test_latent_strategies_are_looked_up_without_an_encoder(run, games):
    found = embedded(write_report(run).read_text())["g1"]
    assert {e["latent"] for e in speeches(found)} == {None}
    wolves = [e for e in speeches(found) if found["players"][e["seat"]]["role"] == "Werewolf"]
    texts = tuple(dict.fromkeys(relative(e["text"], e["seat"], 7) for e in wolves))[:-1]
    save_latents(run / "iteration_1" / "latents", ("never said", *texts))
    data = embedded(write_report(run).read_text())
    labels = {text: number for number, text in enumerate(texts, start=1)}
    expected = [labels.get(relative(e["text"], e["seat"], 7)) for e in wolves]
    assert set(expected) >= {None, 1}
    assert [e["latent"] for e in speeches(data["g1"]) if e["seat"] in {w["seat"] for w in wolves}] == expected
    assert {e["latent"] for e in speeches(data["g0"])} == {None}, "strategies of another iteration mean nothing"
    next((run / "iteration_1" / "latents").glob("*.npz")).write_bytes(b"damaged")
    assert {e["latent"] for e in speeches(embedded(write_report(run).read_text())["g1"])} == {None}


def test_a_report_without_games_holds_nothing_of_them(tmp_path, run):
    page = write_report(make_run(tmp_path / "coin", steps=3)).read_text()
    assert "games" not in embedded(page)["index"]
    assert "function drawStage" not in page
    assert ".stage" not in page
    assert "function drawStage" in write_report(run).read_text()


def test_the_report_imports_no_environment():
    code = "import sys, agentgym.report; assert not [m for m in sys.modules if 'werewolf' in m or m == 'pettingzoo']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_readable_configuration_the_settings_that_fit_are_taken(run, games):
    store.write(run / "trajectories" / "step_00002.jsonl", games[1])
    (run / "config.yaml").write_text("just: [a, broken\n  yaml")
    listed = embedded(write_report(run).read_text())["index"]["games"]["list"]
    assert [game["players"] for game in listed] == [7, 7, 4]


@pytest.mark.browser
def test_a_person_can_watch_a_game(run, games, chromium):
    for trajectory in (changed := copy.deepcopy(games[0])):
        if "speeches" in trajectory.info:
            said = json.loads(trajectory.info["speeches"])
            said[0][2] = PAYLOAD
            trajectory.info["speeches"] = json.dumps(said)
    store.write(run / "trajectories" / "step_00003.jsonl", changed)
    path = write_report(run)
    data = embedded(path.read_text())
    game, last = data["g2"], len(data["g2"]["events"])
    shown = "document.getElementById('games').innerText"
    with Page(chromium, path.as_uri()) as page:
        page.click("#to-games")
        assert page.run("location.hash") == "#games" or page.run("location.hash").startswith("#g=0")
        page.run("location.hash = '#g=2&at=0'")
        page.run("new Promise((resolve) => setTimeout(resolve, 50))")
        seen = [page.run(shown)]
        for _ in range(last + 2):  # two more than there are
            page.press("ArrowRight")
            seen.append(page.run(shown))
        assert page.run("replay.at") == last
        end = {"wolves": "The Werewolves win.", "village": "The village wins.", "nobody": "Nobody wins"}[game["winner"]]
        assert end in seen[-1]
        assert end not in seen[-4]
        for event in speeches(game):
            assert event["text"] in seen[-1]
        assert PAYLOAD in seen[-1]
        secret = ("Werewolf · model", "· opponent", "proposes to kill", "latent strategy", f"won by {game['winner']}")
        assert not [text for text in secret for view in seen if text in view]
        dead = "document.querySelectorAll('.seat.dead').length"
        out = [
            e for e in game["events"] if e.get("victim") is not None or (e["kind"] == "out" and e["seat"] is not None)
        ]
        assert page.run(dead) == len(out)
        page.click("#games label")
        for text in secret:
            assert text in page.run(shown)
        assert page.run("document.querySelectorAll('.seat.is-werewolf').length") == 2
        vote = 1 + next(i for i, e in enumerate(game["events"]) if e["kind"] == "ballots")
        page.run(f"location.hash = '#g=2&at={vote}'")
        page.run("new Promise((resolve) => setTimeout(resolve, 50))")
        cast = [target for target in game["events"][vote - 1]["targets"] if isinstance(target, int)]
        assert page.run("document.querySelectorAll('.arrow.vote').length") == len(cast)
        votes = "[...document.querySelectorAll('.seat .badge')].map((b) => Number(b.textContent) || 0)"
        assert sum(page.run(votes)) == len(cast)
        assert not page.run("replay.roles"), "an address without roles hides them"
        page.press("ArrowLeft")
        assert page.run("replay.at") == vote - 1
        page.click(".moves button:nth-child(2)")
        assert page.run("document.querySelector('.moves button:nth-child(2)').textContent") == "Pause"
        page.click(".log .entry small button")
        page.run("new Promise((resolve) => setTimeout(resolve, 50))")
        assert page.run("state.view") == "trajectories"
        assert page.run("replay.timer") == 0
        assert page.run("document.title") != "pwned"
        assert page.errors == []


@pytest.mark.browser
def test_a_page_of_damaged_games_says_so(run, chromium):
    (run / "trajectories" / "eval_00000.jsonl").unlink()
    seats = store.read(run / "trajectories" / "step_00001.jsonl")
    store.write(run / "trajectories" / "step_00001.jsonl", seats[7:])
    with Page(chromium, write_report(run).as_uri() + "#games") as page:
        assert "1 game left out" in page.run("document.getElementById('games').innerText")
        page.press("ArrowRight")
        assert page.errors == []
