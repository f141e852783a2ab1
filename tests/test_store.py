"""Trajectories survive the disk exactly, and damage is reported or repaired, never passed on."""

import dataclasses
import json
import math
import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym import store, store_parquet
from agentgym.errors import ConfigError, MissingDependency
from agentgym.types import Edit, Segment, Status, Trajectory, Turn

TEXT = st.text(max_size=30)
COUNT = st.integers(0, 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
FLOAT = st.floats(allow_nan=False)
SCALAR = st.none() | st.booleans() | st.integers() | FLOAT | TEXT


@st.composite
def segments(draw):
    length = draw(st.integers(0, 6))

    def tokens(values):
        return draw(st.lists(values, min_size=length, max_size=length))

    return Segment(
        ids=tokens(COUNT),
        mask=tokens(st.integers(0, 1)),
        logps=tokens(FLOAT32),
        versions=tokens(st.integers(-1, 2**31 - 1)),
        edit=draw(st.none() | st.builds(Edit, COUNT, COUNT, COUNT, TEXT, TEXT)),
        advantages=tokens(FLOAT) if draw(st.booleans()) else None,
    )


TURNS = st.builds(
    Turn,
    observation=TEXT,
    segment=COUNT,
    prompt_start=COUNT,
    start=COUNT,
    stop=COUNT,
    text=TEXT,
    action=st.none() | TEXT,
    parse_error=st.none() | TEXT,
    reward=FLOAT,
    finish=st.sampled_from(["stop", "length"]),
    policy_s=FLOAT,
    env_s=FLOAT,
    probe=st.none() | FLOAT,
    info=st.dictionaries(TEXT, SCALAR, max_size=2),
)
MESSAGES = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "tool"]),
    TEXT,
)
TRAJECTORIES = st.builds(
    Trajectory,
    env_id=TEXT,
    env_seed=st.integers(0, 2**63 - 1),
    group=TEXT,
    member=COUNT,
    sampling_seed=st.integers(0, 2**63 - 1),
    policy=TEXT,
    messages=st.lists(MESSAGES, max_size=3),
    segments=st.lists(segments(), max_size=3),
    turns=st.lists(TURNS, max_size=3),
    status=st.none() | st.sampled_from(Status),
    success=st.none() | st.booleans(),
    error=st.none() | TEXT,
    attempts=COUNT,
    info=st.dictionaries(TEXT, SCALAR | st.lists(SCALAR, max_size=2), max_size=3),
    final_observation=TEXT,
)


def episode(member=0, observation="You see a café ☕ — 走廊\n"):
    segment = Segment()
    segment.append_context([5, 6, 7])
    segment.append_sampled([8, 9], [float(np.float32(-0.1)), -0.0], 4)
    turn = Turn(observation, 0, 0, 3, 5, "go", "go", reward=0.1)
    return Trajectory(
        "Env-v0", 3, "g", member, segments=[segment], turns=[turn], status=Status.DONE, info={"score": 0.5}
    )


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(trajectories=st.lists(TRAJECTORIES, max_size=3))
def test_round_trip_is_exact(tmp_path, suffix, trajectories):
    path = tmp_path / f"t.{suffix}"
    store.write(path, trajectories)
    found = store.read(path)
    assert found == trajectories
    assert repr(found) == repr(trajectories)  # types, signs of zero and enum members too


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(TRAJECTORIES, max_size=2), min_size=1, max_size=4))
def test_appends_add_up(tmp_path, parts):
    path = tmp_path / "new" / "t.jsonl"
    path.unlink(missing_ok=True)
    for part in parts:
        store.append(path, part)
    assert store.read(path) == [t for part in parts for t in part]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_non_finite_floats_and_numpy_scalars_survive(tmp_path, suffix):
    trajectory = episode()
    trajectory.turns[0].reward = math.nan
    trajectory.segments[0].advantages = [math.inf, -math.inf, -0.0, 1e-300, math.pi]
    trajectory.info = {
        "score": np.float32(0.1),
        "steps": np.int64(3),
        "won": np.bool_(True),
        "v": np.arange(2),
    }
    store.write(tmp_path / f"t.{suffix}", [trajectory])
    (found,) = store.read(tmp_path / f"t.{suffix}")
    assert math.isnan(found.turns[0].reward)
    assert repr(found.segments) == repr(trajectory.segments)
    assert found.info == {"score": float(np.float32(0.1)), "steps": 3, "won": True, "v": [0, 1]}


def test_lone_surrogates_survive_in_jsonl_and_are_refused_in_parquet(tmp_path):
    trajectory = episode(observation="half a pair: \ud83d!")
    store.write(tmp_path / "t.jsonl", [trajectory])
    assert store.read(tmp_path / "t.jsonl") == [trajectory]
    with pytest.raises(ConfigError, match=r"t\.parquet.*jsonl holds more"):
        store.write(tmp_path / "t.parquet", [trajectory])
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_value_without_a_place_names_the_trajectory(tmp_path, suffix):
    trajectory = episode(member=5)
    trajectory.info = {"env": object()}
    with pytest.raises(ConfigError, match=r"Env-v0, group 'g', member 5: object .* is not JSON"):
        store.write(tmp_path / f"t.{suffix}", [episode(), trajectory])
    assert list(tmp_path.iterdir()) == []


def test_parquet_refuses_message_keys_it_has_no_column_for(tmp_path):
    trajectory = episode()
    trajectory.messages = [{"role": "assistant", "content": "", "tool_calls": []}]
    with pytest.raises(ConfigError, match="other keys than role and content"):
        store.write(tmp_path / "t.parquet", [trajectory])


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "t.jsonl"
    store.write(path, [episode()])

    def broken():
        yield episode(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.write(path, broken())
    assert store.read(path) == [episode()]
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_the_last_line_may_be_cut_at_any_byte(tmp_path):
    path = tmp_path / "t.jsonl"
    store.write(path, [episode(0), episode(1)])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        survivors = [episode(0), episode(1)] if end == len(whole) - 1 else [episode(0)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert store.read(path) == survivors
        cut = start < end < len(whole) - 1
        assert [("line 3" in str(w.message) and str(path) in str(w.message)) for w in caught] == [True] * cut
        store.append(path, [episode(2)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.read(path) == [*survivors, episode(2)]


def test_a_first_append_may_be_cut_inside_the_header(tmp_path):
    path = tmp_path / "t.jsonl"
    store.write(path, [])
    header = path.read_bytes()
    for end in range(len(header)):
        path.write_bytes(header[:end])
        with pytest.warns(UserWarning, match="header was cut"):
            assert store.read(path) == []
        store.append(path, [episode()])
        assert store.read(path) == [episode()]


def test_a_long_cut_line_is_repaired(tmp_path):
    path = tmp_path / "t.jsonl"
    store.write(path, [episode(0), episode(1, "x" * 3_000_000)])
    path.write_bytes(path.read_bytes()[:-10])
    store.append(path, [episode(2)])
    assert store.read(path) == [episode(0), episode(2)]


@pytest.mark.parametrize("damage", [b"{oops", b"\xff\xfe", b"[]", b"7", b"{}", b'{"segments":[],"turns":[]}'])
def test_a_corrupt_middle_line_is_named(tmp_path, damage):
    path = tmp_path / "t.jsonl"
    store.write(path, [episode(0), episode(1), episode(2)])
    lines = path.read_bytes().split(b"\n")
    lines[2] = damage
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ConfigError, match=r"t\.jsonl, line 3: not a trajectory.*sed -i 3d"):
        store.read(path)


def test_a_corrupt_whole_last_line_is_an_error(tmp_path):
    path = tmp_path / "t.jsonl"
    store.write(path, [episode()])
    with path.open("ab") as file:
        file.write(b"{oops\n")
    with pytest.raises(ConfigError, match="line 3"):
        store.read(path)


@pytest.mark.parametrize("version", [2, 0, "1b", None])
def test_an_unknown_version_is_refused(tmp_path, version):
    path = tmp_path / "t.jsonl"
    content = json.dumps({"agentgym_trajectories": version}) + "\n{}\n"
    path.write_text(content)
    for use in (lambda: store.read(path), lambda: store.append(path, [])):
        with pytest.raises(ConfigError, match=rf"t\.jsonl, line 1: schema version {version}, but .* reads 1"):
            use()
    assert path.read_text() == content


@pytest.mark.parametrize("content", ['{"step": 1}', '{"step": 1}\n{"st', "hello\n", "[1]\n"])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    for use in (lambda: store.read(path), lambda: store.append(path, [episode()])):
        with pytest.raises(ConfigError, match="line 1: not a trajectory file"):
            use()
    assert path.read_text() == content


def test_a_truncated_parquet_file_is_one_clear_error(tmp_path):
    path = tmp_path / "t.parquet"
    store.write(path, [episode(0), episode(1)])
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match=r"t\.parquet: truncated or damaged parquet"):
            store.read(path)


def test_parquet_version_and_foreign_files_are_checked(tmp_path):
    pa, parquet = store_parquet.pyarrow()
    table = pa.table({"a": [1]})
    parquet.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(ConfigError, match=r"foreign\.parquet: not a trajectory file"):
        store.read(tmp_path / "foreign.parquet")
    parquet.write_table(table.replace_schema_metadata({"agentgym_trajectories": "9"}), tmp_path / "new.parquet")
    with pytest.raises(ConfigError, match=r"new\.parquet: schema version 9"):
        store.read(tmp_path / "new.parquet")


def test_parquet_columns_are_the_fields_of_the_contract():
    columns = store_parquet.schema()

    def names(kind):
        return [field.name for field in dataclasses.fields(kind)]

    assert columns.names == names(Trajectory)
    segment = columns.field("segments").type.value_type
    assert [f.name for f in segment] == names(Segment)
    assert [f.name for f in segment.field("edit").type] == names(Edit)
    assert [f.name for f in columns.field("turns").type.value_type] == names(Turn)
    assert not any(str(f.type) == "null" for f in columns)


def test_parquet_is_streamed_in_row_groups(tmp_path):
    many = [episode(i) for i in range(600)]
    store.write(tmp_path / "t.parquet", iter(many))
    _, parquet = store_parquet.pyarrow()
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    assert store.read(tmp_path / "t.parquet") == many


def test_paths_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"t\.json: use the suffix"):
        store.write(tmp_path / "t.json", [])
    with pytest.raises(ConfigError, match="no trajectory file"):
        store.read(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match=r"append to \.jsonl"):
        store.append(tmp_path / "t.parquet", [])


def test_missing_pyarrow_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[parquet\]"):
        store.write(tmp_path / "t.parquet", [])
