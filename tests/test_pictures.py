"""Images of observations: markers, storage beside trajectories, replay, endpoints and the report."""

import base64
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from helpers_browser import Page
from helpers_vision import Square
from hypothesis import given
from hypothesis import strategies as st

from agentgym import pictures, report_pictures, store
from agentgym.env_worker import EnvPool, make_env
from agentgym.errors import ConfigError, EnvError
from agentgym.pictures import Picture, Ref, observed, seen, split
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.renderer import ByteTokenizer, Renderer
from agentgym.report import write_report
from agentgym.rollout import Rollout, RolloutConfig, Task
from agentgym.types import Trajectory

MARKER = Ref("0123456789abcdef0123456789abcdef", 20, 30).marker


def screen(seed=0, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def play(policy=None, seed=1, rounds=2, **env):
    with EnvPool("test/Square-v0", {"rounds": rounds, **env}) as pool:
        rollout = Rollout(pool, policy or ExpertPolicy(), RolloutConfig(max_turns=rounds))
        [group] = rollout.collect([Task(seed, seed, "g", 0, 0)])
    return group.trajectories[0]


def test_pixels_come_back_exactly_and_equal_ones_are_one_object():
    pixels = screen()
    picture = Picture.of(pixels)
    assert (picture.pixels == pixels).all()
    assert Picture.of(pixels.copy()) is picture
    assert Picture.of(screen(1)) != picture
    assert Picture.of(pixels.reshape(30, 20, 3)) != picture
    assert Picture.of(pixels[::-1]) != picture
    assert pickle.loads(pickle.dumps(picture)) == picture
    assert picture.url == f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (7, "must be text, but this is int"),
        ({"image": screen()}, "must hold a text and an image"),
        ({"text": 3, "image": screen()}, "must hold a text and an image"),
        ({"text": "", "image": screen(), "sound": 1}, "sound"),
        ({"text": "", "image": screen().astype(np.float32)}, r"uint8 array \[H, W, 3\], but this is float32"),
        ({"text": "", "image": screen()[:, :, 0]}, r"but this is uint8 \(20, 30\)"),
        ({"text": "", "image": screen().tolist()}, "but this is list"),
        ({"text": "", "image": screen()[:0]}, "empty"),
    ],
)
def test_wrong_observations(observation, message):
    with pytest.raises(EnvError, match=message):
        observed(observation)


def test_an_image_above_the_cap_is_refused():
    with pytest.raises(ConfigError, match=r"5000 x 2000 pixels, more than \d+"):
        observed({"text": "", "image": np.zeros((2000, 5000, 3), np.uint8)})


def test_an_image_may_be_missing():
    assert observed({"text": "over", "image": None}) == observed({"text": "over"}) == "over"


@given(st.lists(st.text() | st.just(MARKER) | st.just("<|image:")))
def test_texts_and_markers_are_told_apart(parts):
    text = "".join(parts)
    found = list(split(text))
    assert "".join(part.marker if isinstance(part, Ref) else part for part in found) == text
    assert pictures.without(text) == "".join(part for part in found if isinstance(part, str))
    escaped = Renderer(ByteTokenizer()).escape(text)
    assert not any(isinstance(part, Ref) for part in split(escaped))


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_what_is_stored_comes_back_and_an_image_lies_there_once(tmp_path, name):
    played = [play(), play(), play(seed=2), play(seed=3)]
    store.write(tmp_path / name, played[: 3 if name == "t.jsonl" else 4])
    if name == "t.jsonl":
        store.append(tmp_path / name, played[3:])
    hashes = {h for t in played for h in t.pictures}
    assert {p.stem for p in (tmp_path / "images").iterdir()} == hashes
    back = store.read(tmp_path / name)
    assert back == played
    for old, new in zip(played, back, strict=True):
        for key, picture in old.pictures.items():
            assert (new.pictures[key].pixels == picture.pixels).all()
    if name == "t.jsonl":
        assert played[0].pictures[next(iter(played[0].pictures))].url not in (tmp_path / name).read_text()
    assert Trajectory.from_dict(json.loads(json.dumps(back[0].to_dict()))) == played[0]


def test_images_that_are_gone_or_damaged_are_named(tmp_path):
    trajectory = play(seed=4)
    store.write(tmp_path / "t.jsonl", [trajectory])
    (first, last) = (tmp_path / "images" / f"{name}.png" for name in list(trajectory.pictures)[:2])
    pixels = trajectory.pictures[first.stem].pixels
    del trajectory
    first.write_bytes(last.read_bytes())
    (back,) = store.read(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match=f"{first.stem}.*another one than its name says"):
        _ = back.pictures[first.stem].pixels
    first.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=f"{first.stem}.*damaged"):
        _ = back.pictures[first.stem].pixels
    first.unlink()
    with pytest.raises(ConfigError, match=f"{first.stem}.*is not there: restore"):
        store.read(tmp_path / "t.jsonl")
    assert pixels.shape == (64, 96, 3)


def test_replay_compares_what_is_seen(monkeypatch):
    trajectory = play()
    env = make_env("test/Square-v0", {"rounds": 2})
    assert store.replay(trajectory, env) == []
    original = Square._observation

    def off_by_one(self):
        found = original(self)
        found["image"][3, 4, 1] ^= self.round == 1
        return found

    monkeypatch.setattr(Square, "_observation", off_by_one)
    (found,) = store.replay(trajectory, env)
    assert (found.turn, found.what) == (1, "observation")
    assert pictures.without(found.stored) == pictures.without(found.replayed)


@pytest.mark.parametrize(
    ("action", "info", "point", "to", "label"),
    [
        ("click 12 34", {}, [12, 34], None, None),
        ("CLICK(12, 34)", {}, [12, 34], None, None),
        ("long_press 1.5 2", {}, [1.5, 2], None, None),
        ("drag 1 2 3 4", {}, [1, 2], [3, 4], None),
        ("drag (1, 2) to 3 4", {}, None, None, None),
        ("type hello world", {}, None, None, "hello world"),
        ("click 7", {"point": "30 40"}, [30, 40], None, None),
        ("click 7", {"point": [30, 40]}, [30, 40], None, None),
        ('[{"action": "click", "point": [120, 48], "input_text": "none"}]', {}, [120, 48], None, None),
        ('[{"action": "type", "point": [-100, -100], "input_text": "cats"}]', {}, None, None, "cats"),
        ('{"action": "swipe", "coordinate": [1, 2], "coordinate2": [3, 4]}', {}, [1, 2], [3, 4], None),
    ],
)
def test_an_action_on_the_screen(action, info, point, to, label):
    expected = {"point": point, "to": to, "label": label}
    assert report_pictures.drawn(action, info) == (expected if any(v is not None for v in expected.values()) else None)


@pytest.mark.parametrize(
    "action", [None, "wait", "click", "go north", "[]", '[{"action": "wait"}]', "{" * 99, "click 7"]
)
def test_an_action_that_has_no_place(action):
    assert report_pictures.drawn(action, {"score": 1}) is None


def test_an_environment_of_the_spaces_that_it_names():
    env = gym.make("test/Square-v0")
    assert env.observation_space.contains(env.reset(seed=1)[0])
    assert seen(observed(env.reset(seed=1)[0])) == seen(observed(env.reset(seed=1)[0]))


def test_the_report_shows_screens_with_the_actions_on_them(tmp_path, chromium, monkeypatch):
    size = {"size": (210, 160), "say": "Click "}
    clicked, others = play(**size), play(CannedPolicy(["drag 20 30 120 150", "type <b>hello</b>"]), seed=2, **size)
    (tmp_path / "trajectories").mkdir()
    store.write(tmp_path / "trajectories" / "step_00001.jsonl", [clicked, others])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    page = write_report(tmp_path)
    with Page(chromium, f"{page.as_uri()}#t=0") as browser:
        browser.run("Promise.all([...document.images].map((i) => i.decode()))")
        assert browser.run("document.querySelectorAll('.turn img').length") == 3
        assert browser.run("document.querySelector('.turn .sight pre').textContent").startswith("Click ")
        x, y = clicked.turns[0].action.split()[1:]
        circle = "document.querySelector('.screen circle').getAttribute"
        assert browser.run(f"[{circle}('cx'), {circle}('cy')]") == [x, y]
        box = "document.querySelector('.screen img').getBoundingClientRect()"
        assert browser.run(f"[{box}.width, {box}.height]") == [320, 420]
        ring = "document.querySelector('.screen circle').getBoundingClientRect()"
        on = browser.run(
            f"(({{left, top}}) => [{ring}.x + {ring}.width / 2 - left, {ring}.y + {ring}.height / 2 - top])({box})"
        )
        assert on == pytest.approx([2 * int(x), 2 * int(y)], abs=0.5), "the ring is not where the click was"
        browser.picture(tmp_path / "clicked.png")
        browser.run("location.hash = '#t=1'")
        browser.run("Promise.all([...document.images].map((i) => i.decode()))")
        assert browser.run("document.querySelectorAll('.screen polyline').length") == 2
        assert browser.run("document.querySelector('.screen text').textContent") == "<b>hello</b>"
        browser.picture(tmp_path / "dragged.png")
        assert browser.errors == []
    monkeypatch.setattr(report_pictures, "MOST_BYTES", 1)
    with Page(chromium, f"{write_report(tmp_path).as_uri()}#t=1") as browser:
        assert browser.run("document.querySelectorAll('.turn img').length") == 0
        assert "not in this page" in browser.run("document.querySelector('.sight .note').textContent")
