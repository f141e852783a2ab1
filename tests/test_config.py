"""Settings: what is wrong is one ConfigError that names the key; what is right survives the file."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from agentgym.trainers import grpo, sft
from hypothesis import given
from hypothesis import strategies as st

from agentgym import config
from agentgym.errors import ConfigError


@dataclass
class Inner:
    rate: float = 0.5
    size: int = 3
    kind: Literal["a", "b", "none"] = "a"
    level: Literal[0, 1] = 0


@dataclass
class Outer:
    name: str = "x"
    flag: bool = False
    maybe: float | None = None
    either: int | str = 1
    inner: Inner = field(default_factory=Inner)
    numbers: tuple[float, ...] = (0.1, 0.2)
    words: list[str] = field(default_factory=lambda: ["w"])
    extra: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Needy:
    must: int
    outer: Outer = field(default_factory=Outer)


WRONG = {
    # YAML text: what the error must say
    "nam: y": r"unknown config key 'nam': did you mean name",
    "inner: {rat: 1}": r"unknown config key 'inner\.rat': did you mean inner\.rate",
    "inner: {deep: {er: 1}}": r"unknown config key 'inner\.deep'",
    "1: 2": r"unknown config key '1'",
    "null: 2": r"unknown config key 'None'",
    "true: 2": r"unknown config key 'True'",
    "? [1, 2]\n: 3": r"unhashable",
    "name: 3": r"^name: expected str, got 3$",
    "name: on": r"^name: expected str, got True$",
    "name: 2020-01-02": r"^name: expected str, got datetime\.date",
    "name:": r"^name: expected str, got None$",
    "name: [x]": r"^name: expected str, got \['x'\]$",
    "flag: 1": r"^flag: expected bool, got 1$",
    "flag: 'yes'": r"^flag: expected bool, got 'yes'$",
    "maybe: much": r"^maybe: expected float, got 'much'$",
    "maybe: {}": r"^maybe: expected float, got \{\}$",
    "either: 1.5": r"^either: expected str, got 1\.5$",
    "inner: 3": r"^inner: expected settings \(key: value\), got 3$",
    "inner:": r"^inner: expected settings \(key: value\), got None$",
    "inner: [rate, 1]": r"^inner: expected settings",
    "inner: {rate: fast}": r"^inner\.rate: expected float, got 'fast'$",
    "inner: {rate: true}": r"^inner\.rate: expected float, got True$",
    "inner: {rate: .nan}": r"^inner\.rate: expected float, got nan$",
    "inner: {rate: nan}": r"^inner\.rate: expected float, got nan$",
    "inner: {rate: 1" + "0" * 400 + "}": r"^inner\.rate: expected float, got 10+\.\.\.0+$",
    "inner: {size: 1.0}": r"^inner\.size: expected int, got 1\.0$",
    "inner: {size: '3'}": r"^inner\.size: expected int, got '3'$",
    "inner: {size: 1e3}": r"^inner\.size: expected int, got '1e3'$",
    "inner: {size: false}": r"^inner\.size: expected int, got False$",
    "inner: {kind: c}": r"^unknown value of inner\.kind 'c'",
    "inner: {kind: noe}": r"^unknown value of inner\.kind 'noe': did you mean none",
    "inner: {kind: null}": r"^unknown value of inner\.kind 'None'",
    "inner: {kind: [a]}": r"^unknown value of inner\.kind",
    "inner: {level: true}": r"^unknown value of inner\.level 'True'",
    "inner: {level: 1.0}": r"^unknown value of inner\.level '1\.0'",
    "numbers: 3": r"^numbers: expected a list, got 3$",
    "numbers: '0.1, 0.2'": r"^numbers: expected a list",
    "numbers: [0.1, [0.2]]": r"^numbers: expected float, got \[0\.2\]$",
    "words: {a: b}": r"^words: expected a list",
    "words: [1]": r"^words: expected str, got 1$",
    "extra: [1]": r"^extra: expected a mapping, got \[1\]$",
    "extra: {1: 2}": r"^key of extra: expected str, got 1$",
    "counts: {a: many}": r"^counts\.a: expected int, got 'many'$",
    "[1, 2]": r"config\.yaml: expected settings",
    "just text": r"config\.yaml: expected settings",
    "0": r"config\.yaml: expected settings",
    "a: b: c": r"config\.yaml is not valid YAML: line 1: mapping values are not allowed here",
    "name: x\ninner:\n\trate: 1": r"line 3: found character '\\t'",
    "name: 'x": r"config\.yaml is not valid YAML: line 1",
    "name: [x": r"config\.yaml is not valid YAML: line 1",
    "name: *x": r"line 1: found undefined alias",
    "name: @x": r"line 1: found character '@'",
    "name: x\nname: y": r"line 2: name stands twice",
    "inner: {rate: 1, rate: 2}": r"line 1: rate stands twice",
    "name: x\n---\nname: y": r"line 2: but found another document",
    "name: !!python/object/apply:os.system [ls]": r"line 1: could not determine a constructor",
    "name: 2020-13-45": r"config\.yaml is not valid YAML: month must be in 1\.\.12",
    "name: !!int x": r"config\.yaml is not valid YAML: invalid literal",
    "name: !!bool x": r"config\.yaml is not valid YAML: 'x'",
    "name: !!timestamp x": r"config\.yaml is not valid YAML",
    "name: \x00": r"config\.yaml is not valid YAML",
    "name: " + "[" * 3000: r"config\.yaml is not valid YAML: maximum recursion",
    "name: " + "9" * 5000: r"config\.yaml is not valid YAML: Exceeds the limit",
    "extra: &x {again: *x}": r"line 1: found unconstructable recursive node",
    "words: &x [*x]": r"line 1: found unconstructable recursive node",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40].encode("unicode_escape").decode())
def test_wrong_settings_are_one_error_that_names_the_key(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=WRONG[text]) as caught:
        config.build(Outer, config.load(file))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200 + len(str(file))


def test_ten_lines_of_yaml_that_would_print_a_billion_words(tmp_path):
    lines = [f"- &x0 [{', '.join(['ha'] * 9)}]"]
    lines += [f"- &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "config.yaml").write_text("name:\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match=r"^name: expected str, got \[\['ha', .{0,100}$"):
        config.build(Outer, config.load(tmp_path / "config.yaml"))


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, "nul\0byte"):
        with pytest.raises(ConfigError, match="cannot read the config"):
            config.load(path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot read the config .*latin\.yaml"):
        config.load(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", ["", "# nothing", "---", "null", "{}"])
def test_empty_files_change_nothing(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert config.build(Outer, config.load(tmp_path / "c.yaml")) == Outer()


def test_numbers_that_yaml_takes_for_text():
    assert config.build(Outer, config.settings(["inner.rate=1e-4"])).inner.rate == 1e-4
    assert config.build(Outer, {"maybe": 3}).maybe == 3.0
    assert isinstance(config.build(Outer, {"maybe": 3}).maybe, float)
    assert config.build(Outer, {"maybe": None}).maybe is None
    assert config.build(Outer, {"inner": {"kind": "none"}}).inner.kind == "none"
    assert config.build(Outer, {"either": "x"}).either == "x"
    assert config.build(Outer, {"either": 2}).either == 2
    assert config.build(Outer, {"numbers": [1, "2e0"]}).numbers == (1.0, 2.0)


def test_what_has_no_default_must_be_given():
    assert config.build(Needy, {"must": 1}).must == 1
    with pytest.raises(ConfigError, match=r"^must is missing$"):
        config.build(Needy, {})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["rate"], "--set rate: write key=value"),
        (["=3"], "--set =3: write key=value"),
        ([""], "write key=value"),
        (["name=[x"], r"--set name: the value is not valid YAML: line 1"),
        (["name=2020-13-45"], r"--set name: the value is not valid YAML: month"),
        (["inner.rate="], r"inner\.rate: expected float, got None"),
        (["inner..rate=1"], r"unknown config key 'inner\.'"),
        ([".=1"], "unknown config key ''"),
        (["inner=1", "inner.rate=2", "name.x=1"], r"name: expected str, got \{'x': 1\}"),
        (["inner.rate.x=1"], r"inner\.rate: expected float, got \{'x': 1\}"),
        ([" name=x"], "unknown config key ' name': did you mean name"),
    ],
)
def test_wrong_settings_of_the_command_line(pairs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(Outer, config.settings(pairs))
    assert len(str(caught.value).splitlines()) == 1


def test_settings_merge_and_the_last_wins():
    got = config.settings(["inner.rate=1", "inner.size=2", "name=a=b", "inner.rate=3", "words=[p, q]", "extra.k.l=on"])
    assert got == {
        "inner": {"rate": 3, "size": 2},
        "name": "a=b",
        "words": ["p", "q"],
        "extra": {"k": {"l": True}},
    }


def test_overlay_changes_neither():
    base, top = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2], "e": {"f": 1}}
    assert config.overlay(base, top) == {"a": {"b": 3, "c": 2}, "d": [2], "e": {"f": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}
    assert top == {"a": {"b": 3}, "d": [2], "e": {"f": 1}}


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FLOAT = st.floats(allow_nan=False)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OUTER = st.builds(
    Outer,
    name=TEXT,
    flag=st.booleans(),
    maybe=st.none() | FLOAT,
    either=st.integers() | TEXT,
    inner=st.builds(
        Inner,
        rate=FLOAT,
        size=st.integers(),
        kind=st.sampled_from(["a", "b", "none"]),
        level=st.sampled_from([0, 1]),
    ),
    numbers=st.lists(FLOAT, max_size=3).map(tuple),
    words=st.lists(TEXT, max_size=3),
    extra=st.dictionaries(TEXT, VALUE, max_size=3),
    counts=st.dictionaries(TEXT, st.integers(), max_size=3),
)


@given(outer=OUTER)
def test_dump_and_build_give_the_same(tmp_path_factory, outer):
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(config.dump(outer), encoding="utf-8")
    again = config.build(Outer, config.load(file))
    assert again == outer
    assert [type(v) for v in dataclasses.astuple(again)] == [type(v) for v in dataclasses.astuple(outer)]


@given(VALUE | st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Outer)]), VALUE, max_size=4))
def test_any_mapping_is_built_or_is_a_config_error(values):
    if not isinstance(values, dict):
        values = {"inner": values}
    try:
        built = config.build(Outer, values)
    except ConfigError:
        return
    assert built == config.build(Outer, dataclasses.asdict(built))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_setting_is_taken_or_is_a_config_error(text):
    for pair in (text, f"extra.k={text}", f"{text}=1"):
        try:
            config.build(Outer, config.settings([pair]))
        except ConfigError as error:
            said = str(error)
        else:
            said = "nothing"
        assert len(said.splitlines()) == 1 or len(f"{text}|".splitlines()) > 1


@pytest.mark.parametrize("preset", [*grpo.PRESETS, None])
def test_the_trainers_own_configs_survive_the_file(tmp_path, preset):
    module = grpo if preset else sft
    cfg = module.make_config({"preset": preset} if preset else {})
    (tmp_path / "c.yaml").write_text(config.dump(cfg))
    assert module.make_config(config.load(tmp_path / "c.yaml")) == cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollout": {"tempreature": 1}}, r"'rollout\.tempreature': did you mean rollout\.temperature"),
        ({"optim": {"betas": [0.9]}}, r"optim\.betas"),
        ({"optim": {"lr": float("nan")}}, r"optim\.lr"),
        ({"algo": {"aggregation": "mean"}}, r"algo\.aggregation"),
        ({"preset": "grp"}, "preset 'grp': did you mean grpo"),
        ({"env": {"kwargs": {3: 4}}}, r"env\.kwargs"),
    ],
)
def test_wrong_settings_of_a_trainer(values, message):
    with pytest.raises(ConfigError, match=message):
        grpo.make_config(values)
