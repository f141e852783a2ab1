"""The reply of a research agent: what it holds, what is no reply, and what of it the next round sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.actions import make_codec
from agentgym.rounds import action_of, read_action, read_round, report_of, write_round
from agentgym.tool_calls import Call, CallError

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "Oslo"}}\n</tool_call>'


def test_a_round_is_read():
    search = Call("search", {"query": "Oslo"})
    assert read_round(f"<think>hm</think>\n<report>\n a\nb \n</report>\n{CALL}") == ("a\nb", search)
    assert read_round("<report>a</report><answer> Oslo </answer>") == ("a", "Oslo")
    assert read_round(f"no tags around the thought <report>a</report> so {CALL} then") == ("a", search)
    assert read_round(f"in the thought </think><report>a</report>{CALL}") == ("a", search)
    inside = '{"name": "python", "arguments": {"code": "print(\'<answer>1</answer>\')"}}'
    assert read_round(f"<report>a</report><tool_call>{inside}</tool_call>")[1].name == "python"
    assert read_round(f"<report>a</report>{CALL.removesuffix('</tool_call>')}") == ("a", search)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "has none"),
        (CALL, "has none"),
        ("<answer>Oslo</answer>", "has none"),
        (f"<think><report>a</report></think>{CALL}", "has none"),
        (f"<report>a</report><report>b</report>{CALL}", "has 2"),
        (f"<report> </report>{CALL}", "the report is empty"),
        ("<report>a</report> I do not know", "neither a <tool_call> nor an <answer>"),
        (f"{CALL}<report>a</report>", "neither a <tool_call> nor an <answer>"),
        (f"<report>{CALL}</report>", "neither a <tool_call> nor an <answer>"),
        (f"<report>a</report>{CALL}<answer>Oslo</answer>", "a tool call and an answer"),
        (f"<report>a</report><answer>{CALL}</answer>", "a tool call and an answer"),
        (f"<report>a</report>{CALL}{CALL}", "2 tool calls in one reply"),
        ("<report>a</report><answer> </answer>", "the answer is empty"),
        ("<report>a</report><answer>a</answer><answer>b</answer>", "several answers"),
        ("<report>a</report><answer>Oslo", "no tool call"),
        ("<report>a</report><tool_call>search</tool_call>", "no tool call"),
        ("<report>a</report><tool_call>{search}</tool_call>", "not valid JSON"),
        ("<report>a</report><tool_call>[]</tool_call>", "list of tool calls is empty"),
        ("<think><report>a</report><answer>b</answer>", "has none"),
    ],
)
def test_what_is_no_round_is_named(text, wrong):
    with pytest.raises(CallError, match=wrong):
        read_round(text)
    parsed = make_codec("report").parse(text, ())
    assert parsed.action is None
    assert wrong in parsed.error


WORDS = st.text(min_size=1, max_size=40).filter(lambda t: "<" not in t and t.strip() == t and t)


@given(WORDS, WORDS, st.booleans())
def test_what_is_written_is_read(report, text, answer):
    text = text.encode(errors="replace").decode()
    action = text if answer else Call("search", {"query": text})
    written = write_round(report, action)
    assert read_round(written) == (report, action)
    codec = make_codec("report")
    assert codec.write(written, ()) == written
    assert codec.parse(f"<think>x</think>{written}", ()).action == written
    assert report_of(written) == report
    assert read_action(written) == (text if answer else [action])


def test_a_reply_without_a_report_is_read_by_react():
    codec = make_codec("react")
    assert codec.parse(f"<think>hm</think>{CALL}", ()).action == CALL
    assert codec.parse("I think <answer> Oslo </answer>", ()).action == "<answer>Oslo</answer>"
    assert codec.write(f"<report>a</report>\n{CALL}", ()) == CALL
    assert "a tool call and an answer" in codec.parse(f"{CALL}<answer>Oslo</answer>", ()).error
    assert "no tool call" in codec.parse("I do not know", ()).error
    with pytest.raises(ValueError, match="no tool call"):
        codec.write("Oslo", ())


def test_the_codec_writes_no_half_reply():
    with pytest.raises(ValueError, match="would not be read"):
        make_codec("report").write(CALL, ())


def test_what_the_next_round_sees_of_an_action():
    assert action_of(f"<think>x</think>y<report>r</report>z {CALL} w") == CALL
    assert action_of(f"{CALL}\n{CALL}") == f"{CALL}\n{CALL}"
    assert action_of("<report>r</report> go north ") == "go north"
    assert action_of("I go <action>north</action>.") == "<action>north</action>"
    assert action_of("<think>never closed, go") == ""


@given(st.text(alphabet="<>/ tcahoinkreplwu_\n", max_size=200))
def test_any_text_is_read(text):
    parsed = make_codec("report").parse(text, ())
    assert (parsed.action is None) != (parsed.error is None)
    action_of(text)
    report_of(text)
