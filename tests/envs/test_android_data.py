"""AndroidControl's files: records, messages, trees, splits; truncated and corrupt ones are named with their place."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import threading

import numpy as np
import pytest
from agentgym.envs import android_control_data as data
from agentgym.envs import android_control_wire as wire
from agentgym.envs.android_control_tree import Box, Element, elements, read_forest, told, write_forest
from agentgym.envs.android_errands import draw_task
from agentgym.envs.android_synthetic import LENGTHS, Synthetic, synthetic, write
from helpers_android import SMALL, example, folder_of

from agentgym.errors import ConfigError
from agentgym.gui_actions import GuiAction

pytest.importorskip("PIL")

# Written with the packages tfrecord 1.14.6 and android-env 1.3.0 (protobuf 7.36.2).
THEIR_RECORDS = base64.b64decode(
    "XwAAAAAAAABQPyiGCl0KEQoBZhIMEgoKCAAAwD8AACDAChQKB2FjdGlvbnMSCQoHCgJ7fQoB/woUCgVzaXplcxILGgkKBwOAgICAgCAKHAoKZXBpc29k"
    "ZV9pZBIOGgwKCvn//////////wHpSZ19FwAAAAAAAADnzvgeChUKEwoKZXBpc29kZV9pZBIFGgMKAQj4w9ge"
)
THEIR_FOREST = base64.b64decode(
    "CvIBCgYYuAgg4BIQASADKgRNYXBzMAFAAVrZAQozEgYYuAgg4BIaGmFuZHJvaWQud2lkZ2V0LkZyYW1lTGF5b3V0gAEBuAEBygEDBawC2AEBClQIBRIT"
    "CPb//////////wEQZBjIASC0ARoVYW5kcm9pZC53aWRnZXQuQnV0dG9uIgFkOgRTw7hrQP///////////wFwAYABAbgBAcIBBwgQEgN0YXAKTAisAhIL"
    "CAoQyAEYrgggrAIaF2FuZHJvaWQud2lkZ2V0LkVkaXRUZXh0KglXaGVyZSB0bz8yCGNvbS5tYXBzUgRpZC9xeAGQAQG4AQEKBCAJMAI="
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGYM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def small(cache):
    return synthetic(Synthetic(**SMALL))


def test_checksums():
    assert wire.crc32c(b"123456789") == 0xE3069283
    assert wire.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert wire.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert wire.crc32c(b"") == 0


def test_long_data_are_summed_as_short_ones(monkeypatch):
    lanes, noise = wire._LANES, random.Random(0).randbytes(5 * wire._LANES)
    lengths = [4 * lanes - 1, 4 * lanes, 4 * lanes + 1, 4 * lanes + 4099, 5 * lanes]
    long = [wire.crc32c(noise[:length]) for length in lengths]
    monkeypatch.setattr(wire, "_LANES", 1 << 40)
    assert long == [wire.crc32c(noise[:length]) for length in lengths]


@pytest.mark.parametrize("packed", [False, True])
def test_records_of_another_writer(tmp_path, packed):
    path = tmp_path / "records"
    path.write_bytes(gzip.compress(THEIR_RECORDS) if packed else THEIR_RECORDS)
    found = [(offset, wire.read_example(record)) for offset, record in wire.read_records(path)]
    assert found == [
        (0, {"f": [1.5, -2.5], "actions": [b"{}", b"\xff"], "sizes": [3, 1 << 40], "episode_id": [-7]}),
        (111, {"episode_id": [8]}),
    ]


def test_what_is_written_is_read_back(tmp_path):
    features = {"a": [1, -(1 << 63), (1 << 63) - 1], "b": [b"", b"x" * 300, "ø".encode()]}
    records = [b"", b"one", random.Random(1).randbytes(70_000), wire.write_example(features)]
    wire.write_records(tmp_path / "records", records)
    assert [record for _, record in wire.read_records(tmp_path / "records")] == records
    assert wire.read_example(records[-1]) == features
    again = tmp_path / "again"
    wire.write_records(again, records)
    assert again.read_bytes() == (tmp_path / "records").read_bytes()


def test_a_file_cut_anywhere_is_named_with_the_place(tmp_path):
    path = tmp_path / "cut"
    for length in range(len(THEIR_RECORDS)):
        path.write_bytes(THEIR_RECORDS[:length])
        if length in (0, 111):
            assert len(list(wire.read_records(path))) == length // 111
            continue
        with pytest.raises(wire.RecordError, match=r"cut, record at byte \d+: the file ends within the \w+") as caught:
            list(wire.read_records(path))
        assert (caught.value.path, caught.value.offset) == (path, 0 if length < 111 else 111)


def test_any_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "flipped"
    for place in range(len(THEIR_RECORDS)):
        broken = bytearray(THEIR_RECORDS)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(wire.RecordError, match=r"checksum of the (length|data) is wrong") as caught:
            list(wire.read_records(path))
        assert caught.value.offset == (0 if place < 111 else 111)


def test_a_broken_compression_is_noticed(tmp_path):
    whole, path = gzip.compress(THEIR_RECORDS), tmp_path / "packed"
    for length in range(2, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(wire.RecordError, match="gzip data are broken or end too early"):
            list(wire.read_records(path))
    for place in range(10, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = b"".join(record for _, record in wire.read_records(path))
            assert found == THEIR_RECORDS[12:107] + THEIR_RECORDS[123:-4]  # a bit that fills up the last byte
        except wire.RecordError:
            pass
    with pytest.raises(ConfigError, match="cannot read"):
        list(wire.read_records(tmp_path / "nowhere"))


def test_nonsense_is_no_message():
    for nonsense in (b"\x80", b"\x0a\x05ab", b"\x0b", b"\xff" * 11, b"\x09\x01"):
        with pytest.raises(wire.WireError):
            list(wire.fields(nonsense))
    for nonsense in (b"\x0a\x02\x08\x01", b"\x08\x01"):
        with pytest.raises(wire.WireError):
            wire.read_example(nonsense)
    noise = random.Random(2)
    for _ in range(300):
        try:
            read_forest(noise.randbytes(40))
            wire.read_example(noise.randbytes(40))
        except wire.WireError:
            pass


def test_the_tree_of_another_writer():
    windows = read_forest(THEIR_FOREST)
    root, button, entry = windows[0].nodes
    assert (windows[0].title, windows[0].kind, windows[0].layer, windows[0].box) == ("Maps", 1, 3, (0, 0, 1080, 2400))
    assert (windows[1].nodes, windows[1].kind, windows[1].layer) == ((), 2, 9)
    assert root.children == (5, 300)
    assert (button.id, button.text, button.description, button.box) == (5, "Søk", "d", (-10, 100, 200, 180))
    assert button.flags == {"clickable", "enabled", "visible"}
    assert (entry.hint, entry.package, entry.view_id) == ("Where to?", "com.maps", "id/q")
    assert read_forest(write_forest(windows)) == windows
    assert elements(windows, 1080, 2400) == [
        Element(Box(0, 100, 200, 180), "Søk", "Button", (), True, True),
        Element(Box(10, 200, 1070, 300), "Where to?", "EditText", ("focused", "disabled"), True, True),
    ]
    assert told(elements(windows, 1080, 2400)) == (
        '1. Button "Søk" [100, 140]\n2. EditText "Where to?" [540, 250] (focused, disabled)'
    )


def test_synthetic_data_keep_to_the_format(small):
    from PIL import Image

    splits = json.loads((small / "splits.json").read_text())
    assert sorted(number for ids in splits.values() for number in ids) == list(range(36))
    seen = {}
    for path in data.shards(small):
        for _, record in wire.read_records(path):
            episode = wire.read_example(record)
            actions = [json.loads(action) for action in episode["actions"]]
            for name in ("screenshots", "accessibility_trees", "screenshot_widths", "screenshot_heights"):
                assert len(episode[name]) == len(actions) + 1
            assert len(episode["step_instructions"]) == len(actions)
            for picture in episode["screenshots"]:
                with Image.open(io.BytesIO(picture)) as image:
                    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (135, 240))
            for action, tree in zip(actions, episode["accessibility_trees"], strict=False):
                if "x" in action:
                    leaves = [e.box for e in elements(read_forest(tree), 135, 240) if e.leaf]
                    x, y = action["x"], action["y"]
                    assert any(box.left <= x < box.right and box.top <= y < box.bottom for box in leaves)
            seen[episode["episode_id"][0]] = len(actions)
    for ids in splits.values():
        assert sorted(seen[number] for number in ids) == list(LENGTHS)


def test_the_same_seed_gives_the_same_files(small, tmp_path):
    write(tmp_path, Synthetic(**SMALL))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in small.iterdir()
    }
    goals = [draw_task(np.random.default_rng(seed), 5).goal for seed in range(20)]
    assert len({" ".join(goal) for goal in goals}) == 20


def test_a_split_is_unpacked_once_and_any_step_is_found(small, monkeypatch):
    recordings = data.open_split(small, "test")
    originals = {}
    for path in data.shards(small):
        for _, record in wire.read_records(path):
            episode = wire.read_example(record)
            originals[episode["episode_id"][0]] = episode
    assert [episode.id for episode in recordings.episodes] == json.loads((small / "splits.json").read_text())["test"]
    for episode in reversed(recordings.episodes):
        original = originals[episode.id]
        assert [text.encode() for text in episode.instructions] == original["step_instructions"]
        for step in reversed(range(len(episode.actions) + 1)):
            assert recordings.picture(episode, step) == original["screenshots"][step]
            assert recordings.elements(episode, step) == elements(
                read_forest(original["accessibility_trees"][step]), 135, 240
            )
    recordings.close()
    recordings.close()
    monkeypatch.setattr(wire, "read_records", None)
    data.open_split(small, "test").close()


def test_a_folder_is_made_by_one_at_a_time(tmp_path):
    made, folder = [], tmp_path / "deep" / "folder"

    def make(part):
        made.append(part)
        (part / "file").write_text("whole")

    threads = [threading.Thread(target=data.made_once, args=(folder, make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (folder / "file").read_text() == "whole"

    def fail(part):
        (part / "file").write_text("half")
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        data.made_once(tmp_path / "other", fail)
    assert not list(tmp_path.glob("other*"))[1:]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        data.made_once(tmp_path / "file" / "below", make)


def test_actions_of_the_data():
    read = {
        '{"action_type": "click", "x": 3, "y": 4}': GuiAction("click", (3, 4)),
        '{"action_type": "long_press", "x": 3.0, "y": 4.0}': GuiAction("long_press", (3, 4)),
        '{"action_type": "scroll", "direction": "down"}': GuiAction("scroll", text="down"),
        '{"action_type": "open_app", "app_name": "Maps"}': GuiAction("open_app", text="Maps"),
        '{"action_type": "input_text", "text": "none"}': GuiAction("type", text="none"),
        '{"action_type": "type", "x": 3, "y": 4, "text": "a"}': GuiAction("type", (3, 4), "a"),
        '{"action_type": "navigate_home"}': GuiAction("navigate_home"),
        '{"action_type": "navigate_back"}': GuiAction("press_back"),
        '{"action_type": "wait"}': GuiAction("wait"),
    }
    for text, action in read.items():
        assert data.gold_action(json.loads(text)) == action
    for wrong in ({"action_type": "dance"}, {"action_type": "click"}, {"action_type": "open_app"}, [], None):
        with pytest.raises(ValueError, match=r"AndroidControl|needs"):
            data.gold_action(wrong)


def test_episodes_that_cannot_be_used_are_counted(tmp_path, cache, capsys):
    records = [example(1), example(2, []), example(3, [{"action_type": "dance"}]), example(4), example(5)]
    folder = folder_of(tmp_path / "data", records, [1, 2, 3, 4, 9])
    recordings = data.open_split(folder, "test")
    assert [episode.id for episode in recordings.episodes] == [1, 4]
    assert recordings.skipped == {
        "without an action": 1,
        "there is no action_type 'dance' in AndroidControl": 1,
        "in the split, and in no file": 1,
    }
    recordings.close()
    assert data.main([str(folder), "--split", "test"]) == 0
    assert capsys.readouterr().out.startswith("test: 2 episodes, 2 steps\nleft out: 1 without an action\n")
    assert data.main([str(tmp_path)]) == 2
    assert "has no files like android_control-00000-of-00020" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\x08\x01", "no episode of AndroidControl"),
        (wire.write_example({"episode_id": [1]}), "no episode of AndroidControl: 'actions'"),
        (example(screenshots=[b"png"]), "1 actions, 1 instructions and {'screenshots': 1"),
        (example(step_instructions=[b"a", b"b"]), "1 actions, 2 instructions"),
        (example(actions=[], step_instructions=[b"a"]), "0 actions, 1 instructions"),
        (example(accessibility_trees=[b"\x0b", b""]), "unknown wire type"),
        (example(goal=[b"\xff"]), "codec can't decode"),
        (example(episode_id=[]), "not enough values"),
    ],
)
def test_records_that_are_no_episodes(tmp_path, cache, record, message):
    folder = folder_of(tmp_path, [example(1), record], [1])
    with pytest.raises(wire.RecordError, match=message) as caught:
        data.open_split(folder, "test")
    assert caught.value.offset == 16 + len(example(1))
    assert not list(cache.glob("android_control/*.part"))


def test_what_is_wrong_with_a_folder(tmp_path, cache):
    with pytest.raises(ConfigError, match="there is no folder"):
        data.open_split(tmp_path / "nowhere", "test")
    with pytest.raises(ConfigError, match="unknown split 'tst': did you mean test"):
        data.open_split(tmp_path, "tst")
    folder = folder_of(tmp_path / "data", [example(1)], [1])
    with pytest.raises(ConfigError, match="has no episode of the split"):
        data.open_split(folder, "train")
    (folder / "splits.json").write_text("[1]")
    with pytest.raises(ConfigError, match="must be an object with lists of episode ids"):
        data.open_split(folder, "test")
    (folder / "splits.json").write_text('{"tst": []}')
    with pytest.raises(ConfigError, match=r"unknown part of splits.json 'test'"):
        data.open_split(folder, "test")
    (folder / "splits.json").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*splits.json"):
        data.open_split(folder, "test")
    (folder / "android_control-00000-of-00001").rename(folder / "android_control-00001-of-00020")
    with pytest.raises(ConfigError, match=r"19 of 20 files of .* are missing, such as number 0"):
        data.open_split(folder, "test")


def test_a_broken_cache_says_what_to_do(tmp_path, cache):
    folder = folder_of(tmp_path, [example(2)], [2])
    data.open_split(folder, "test").close()
    (made,) = (path.parent for path in cache.glob("android_control/*/index.json") if '[[2, "Wait."' in path.read_text())
    (made / "screens").write_bytes(b"short")
    recordings = data.open_split(folder, "test")
    with pytest.raises(ConfigError, match="is broken at byte 0: remove its folder"):
        recordings.elements(recordings.episodes[0], 0)
    recordings.close()
    (made / "screens").unlink()
    with pytest.raises(ConfigError, match="is broken: remove it"):
        data.open_split(folder, "test")


def test_the_listed_steps(tmp_path):
    path = tmp_path / "test_steps.json"
    path.write_text('[{"image": "android_control/17_0.png"}, {"image": "2024/8193_11.png", "gt_action": "click"}]')
    assert data.listed(tmp_path) == {(17, 0), (8193, 11)}
    for wrong in ("[]", "{}", '[{"image": "a.png"}]', '["17_0.png"]', '[{"image": "1_2.png"}, {}]'):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"EPISODE_STEP"):
            data.listed(tmp_path)


def test_settings_of_synthetic_data():
    for wrong, message in (
        ({"episodes": 40}, "data.episodes is 40: it must be a multiple of 12, 36 at least"),
        ({"episodes": 24}, "36 at least"),
        ({"width": 100}, "data.width is 100: it must be 108 to 4096"),
        ({"height": 5000}, "data.height is 5000"),
        ({"seed": -1}, "data.seed is -1: it must be a whole number"),
        ({"seed": 0.5}, "data.seed is 0.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            Synthetic(**wrong)
