"""Action codecs: what is written is read back, and no text of a model makes them raise."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentgym.actions import CODECS, Choice, Code, Parsed, Plain, Tagged, ToolCall, make_codec
from agentgym.errors import ConfigError

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
TAGS = [
    "<action>",
    "</action>",
    "<tool_call>",
    "</tool_call>",
    "<",
    "</",
    '{"name": "act", "arguments": ',
    '{"command": ',
]
PIECES = [
    '"go north"',
    "}",
    "[",
    "{",
    "\\ud800",
    "\\u0000",
    "1e999",
    "NaN",
    "-1",
    "٣",
    "²",
    "0",
    "9" * 5000,
    "\n",
    "\u2028",
]
WILD = st.lists(st.sampled_from(TAGS + PIECES) | TEXT, max_size=12).map("".join)
ACTION = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just("act"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "arguments", "command", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(ACTION, st.lists(ACTION, max_size=4), st.data())
@pytest.mark.parametrize("name", CODECS)
def test_what_is_written_is_read_back(name, action, others, data):
    codec = make_codec(name)
    admissible = data.draw(st.permutations([action, *others]))
    try:
        text = codec.write(action, admissible)
    except ValueError:
        # Only what the format has no way to say: several lines for plain, the tags themselves for tagged, and for
        # tools, react, report and gui what is none (test_tool_calls.py, test_rounds.py and test_gui_actions.py
        # have those that are).
        assert (
            (name == "plain" and len(action.strip().splitlines()) > 1)
            or (name == "tagged" and "action>" in action)
            or (name == "code" and "```" in action)
            or (name in ("tools", "react", "report", "gui") and codec.parse(action, admissible).error)
        )
        return
    parsed = codec.parse(text, admissible)
    assert parsed.error is None
    assert parsed.action == (action if name == "choice" else action.strip())


@pytest.mark.parametrize("name", sorted(set(CODECS) - {"tools", "react", "report", "gui"}))
def test_ordinary_actions_are_read_back_exactly(name):
    codec = make_codec(name)
    admissible = ["go north", "take the red apple", 'say "hi" \\ {}', "打开 门", "1. look", "5"]
    for action in admissible:
        assert codec.parse(codec.write(action, admissible), admissible) == Parsed(action)
        # Another turn of thought before it changes nothing for the codecs that allow thinking.
        if name in ("tagged", "tool_call"):
            thought = f"I could write <action>x</action>.\n{codec.write('look', admissible)}\n"
            assert codec.parse(thought + codec.write(action, admissible), admissible) == Parsed(action)


def test_a_tool_call_can_hold_its_own_tags():
    for action in ("say </tool_call>", "<tool_call>{}</tool_call>", "a < b"):
        assert ToolCall().parse(ToolCall().write(action, ()), ()) == Parsed(action)


@given(WILD, st.lists(TEXT, max_size=3))
@pytest.mark.parametrize("name", CODECS)
def test_parse_never_raises(name, text, admissible):
    parsed = make_codec(name).parse(text, admissible)
    assert (parsed.action is None) != (parsed.error is None)
    if name == "choice":
        assert parsed.action is None or parsed.action in admissible
    elif parsed.action is not None:
        assert parsed.action
        assert parsed.action == parsed.action.strip()
        parsed.action.encode()
    if parsed.error is not None:
        assert 0 < len(parsed.error) < 300


@given(JSON)
def test_any_json_is_a_call_or_an_error(value):
    parsed = ToolCall().parse(json.dumps(value), ())
    good = isinstance(value, dict) and value.get("name") == "act" and isinstance(value.get("arguments"), dict)
    command = value["arguments"].get("command") if good else None
    assert parsed.action == (command.strip() or None if isinstance(command, str) else None)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"name": "act", "arguments": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "<tool_call>" * 50_000,
        "<tool_call>" + "{" * 200_000,
        "<action>" * 50_000,
        "<action>" + "x" * 500_000,
        "9" * 100_000,
        '{"name": "act", "arguments": {"command": ' + "9" * 5000 + "}}",
        "\x00" * 1000,
    ],
    ids=lambda text: text[:24].replace("\x00", "0"),
)
@pytest.mark.parametrize("name", CODECS)
def test_monstrous_texts_are_data_too(name, text):
    parsed = make_codec(name).parse(text, ["a", "b"])
    assert (parsed.action is None) != (parsed.error is None)
    assert len(parsed.error or "") < 300


@pytest.mark.parametrize(
    ("codec", "text", "action"),
    [
        (Plain(), "\n  go north \nbecause", "go north"),
        (Code(), "Try this:\n```python\nx = 1\nif x:\n    y = 2\n```\nThat is all.", "x = 1\nif x:\n    y = 2"),
        (Code(), "```\na = 1\n```\nBetter:\n```py\n    b = 2\n    c = 3\n```", "b = 2\nc = 3"),
        (Code(), "```python\ncut = off", "cut = off"),
        (Code(), "    x = 1\n\n    y = '```'", "x = 1\n\ny = '```'"),
        (Code(), "x = 1", "x = 1"),
        (Code(), "```python\n\n```", None),
        (Code(), " \n", None),
        (Plain(), " \n\t\n", None),
        (Tagged(), "hm <action> go </action>", "go"),
        (Tagged(), "<action>a</action> no, <action>b</action>", "b"),
        (Tagged(), "I answer in <action> tags: <action>b</action>", "b"),
        (Tagged(), "<action>a</action> is between <action> and", "a"),
        (Tagged(), "<action>a</action></action>", "a"),
        (Tagged(), "<action>go\nnorth</action>", "go\nnorth"),
        (Tagged(), "<action> </action>", None),
        (Tagged(), "<action>go", None),
        (ToolCall(), '{"name": "act", "arguments": {"command": "go"}}', "go"),
        (ToolCall(), 'a <tool_call> <tool_call>{"name": "act", "arguments": {"command": "go"}}</tool_call>', "go"),
        (ToolCall(), '<tool_call>{"name": "run", "arguments": {"command": "go"}}</tool_call>', None),
        (ToolCall(), '<tool_call>{"name": "act", "arguments": {"command": ["go"]}}</tool_call>', None),
        (ToolCall(), '<tool_call>{"name": "act", "arguments": "go"}</tool_call>', None),
        (ToolCall(), '{"name": "act", "arguments": {"command": "a\\ud800"}}', "a?"),
        (Choice(), "2", "two"),
        (Choice(), "1 or rather 3.", "three"),
        (Choice(), "٣", "three"),
        (Choice(), "²", None),
        (Choice(), "0", None),
        (Choice(), "4", None),
        (Choice(), "none", None),
        (Choice(), "12345678901", None),
        (Choice(), "1000000000" * 2 + "1", None),
    ],
)
def test_examples(codec, text, action):
    parsed = codec.parse(text, ["one", "two", "three"])
    assert parsed.action == action
    assert (parsed.error is None) == (action is not None)


def test_actions_that_cannot_be_written():
    for codec, action in ((Plain(), "a\nb"), (Plain(), " "), (Tagged(), "</action>"), (Tagged(), "a <action> b")):
        with pytest.raises(ValueError, match="would not be read as"):
            codec.write(action, [])
    with pytest.raises(ValueError, match="not among the 2 admissible commands"):
        Choice().write("fly", ["walk", "run"])


@given(TEXT, st.lists(ACTION, min_size=1, max_size=12))
def test_the_list_shows_what_the_numbers_mean(observation, admissible):
    assume(all(a == a.strip() and len(a.splitlines()) == 1 for a in admissible))
    shown = Choice().show(observation, admissible)
    assert shown.startswith(observation)
    for line, action in zip(shown.removeprefix(observation).splitlines()[2:], admissible, strict=True):
        assert Choice().parse(line.split(".")[0], admissible).action == action
    for other in (Plain(), Tagged(), ToolCall()):
        assert other.show(observation, admissible) == observation


def test_unknown_codec():
    with pytest.raises(ConfigError, match=r"unknown action codec 'taged': did you mean tagged"):
        make_codec("taged")
