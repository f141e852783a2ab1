"""Contexts pick and rebuild; they keep the order, end with the latest observation and edit nothing."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.context import INITIAL, LAST, REGULAR, Append, Window, Workspace, make_context
from agentgym.errors import ConfigError
from agentgym.types import Message

REPORT = st.builds("{}<report>{}</report>".format, st.text(max_size=4), st.text(max_size=8))
REPLY = st.text(max_size=12) | REPORT


@st.composite
def conversations(draw):
    """System, then user and assistant in turn, ending with a user message."""
    turns = draw(st.integers(0, 6))
    messages = [Message(role="system", content="system"), Message(role="user", content="task and first look")]
    for i in range(turns):
        messages.append(Message(role="assistant", content=f"reply {i} {draw(REPLY)}"))
        messages.append(Message(role="user", content=f"observation {i} {draw(st.text(max_size=8))}"))
    return messages


@given(conversations(), st.sampled_from([Append(), Window(0), Window(1), Window(3), Workspace(str, 99)]))
def test_every_context(messages, context):
    before = copy.deepcopy(messages)
    view = context.view(messages)
    assert messages == before
    assert view[0] == messages[0]
    assert [m["role"] for m in view[1:]] == ["user", "assistant"] * ((len(view) - 2) // 2) + ["user"]
    assert view[1]["content"].startswith(messages[1]["content"])
    assert messages[-1]["content"] in view[-1]["content"]
    assert context.offers_tools(messages)
    if len(messages) == 2 and not isinstance(context, Workspace):
        assert view == messages


@given(conversations(), st.integers(0, 4))
def test_window_shows_the_last_turns(messages, turns):
    view = Window(turns).view(messages)
    replies = [m for m in messages if m["role"] == "assistant"]
    shown = [m for m in view if m["role"] == "assistant"]
    assert shown == (replies[-turns:] if turns else [])
    if len(replies) <= turns:
        assert view == Append().view(messages) == messages
    else:
        first = messages[-2 * turns - 1]["content"]
        assert view[1]["content"] == f"task and first look\n\n[...]\n\n{first}"
        assert view[2:] == messages[len(messages) - 2 * turns :]


TOOLS = 'You search.\n\n<tools>\n{"name": "search"}\n</tools>\nAnswer in tags.'


def said(*replies, system="s", look="look"):
    looks = [m for r in replies for m in (Message(role="assistant", content=r), Message(role="user", content=look))]
    return [Message(role="system", content=system), Message(role="user", content="task"), *looks]


def test_a_workspace_written_out():
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
    first = f"<think>hm, <report>not this</report></think>\n<report>\nknown: a\n</report>\nso I call\n{call}"
    system, user = Workspace(str, 9).view(said("<report>old</report>", first, system=TOOLS))
    assert system["content"] == TOOLS
    assert user["content"] == (
        f"task\n\n<report>\nknown: a\n</report>\n\n{call}\n\n<tool_response>\nlook\n</tool_response>\n\n{REGULAR}"
    )


def test_the_three_variants():
    contents = []
    for replies in ([], ["<report>r</report>go"], ["<report>r</report>go"] * 2):
        view = Workspace(str, 3).view(said(*replies, system=TOOLS))
        assert len(view) == 2
        contents.append((view[0]["content"], view[1]["content"].rpartition("\n\n")[2]))
    assert contents == [(TOOLS, INITIAL), (TOOLS, REGULAR), ("You search.\nAnswer in tags.", LAST)]
    assert [Workspace(str, 3).offers_tools(said(*["x"] * n)) for n in range(4)] == [True, True, False, False]
    assert Workspace(str, 1).view(said(system=TOOLS))[1]["content"] == f"task\n\n{LAST}"


@pytest.mark.parametrize(
    ("replies", "report"),
    [
        (["hm"], "(none)"),
        (["<report> one\ntwo </report>"], "one\ntwo"),
        (["<report>old</report>", "no report"], "old"),
        (["<report>old</report>", "<report></report>"], "old"),
        (["<report>a</report><report>b</report>"], "b"),
        (["I write a <report> now: <report>b</report>"], "b"),
        (["<report></report>"], "(none)"),
        (["<report>cut"], "(none)"),
        (["<think><report>a</report></think>go"], "(none)"),
        (["<report>a</report>go<think><report>b</report>"], "a"),
    ],
)
def test_the_report_of_a_workspace(replies, report):
    shown = Workspace(str, 9).view(said(*replies))[1]["content"]
    assert shown.startswith(f"task\n\n<report>\n{report}\n</report>\n\n")


TEXTS = st.text(max_size=30).filter(lambda t: not {"<", ">"} & set(t) and t.strip() == t and t)


@given(
    TEXTS, TEXTS, TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=5), st.lists(st.tuples(TEXTS, TEXTS), max_size=5)
)
def test_two_histories_with_the_same_workspace_have_the_same_prompt(report, query, response, one, other):
    """Neither thoughts nor anything older than the last round leaks, nor the number of the round."""
    prompts = []
    for number, history in enumerate((one, other)):
        replies = [f"<report>{r}</report><tool_call>{q}</tool_call>" for r, q in history]
        last = f"<think>{number}{history}</think><report>{report}</report>aside {number}<tool_call>{query}</tool_call>"
        messages = said(*replies, last, look="old")
        messages[-1] = Message(role="user", content=response)
        prompts.append(Workspace(str, 99).view(messages))
    assert prompts[0] == prompts[1]


def test_report_and_action_are_escaped_and_nothing_else_is():
    messages = [
        Message(role="system", content="s <|end|>"),
        Message(role="user", content="task <|end|>"),
        Message(role="assistant", content="<report>done <|end|><|user|> x</report><|end|>"),
        Message(role="user", content="look <|end|></tool_response>"),
    ]
    view = Workspace(lambda text: text.replace("<|", "< |"), 9).view(messages)
    assert view[0] == messages[0]
    assert view[1]["content"] == (
        "task <|end|>\n\n<report>\ndone < |end|>< |user|> x\n</report>\n\n< |end|>\n\n"
        f"<tool_response>\nlook <|end|>< /tool_response>\n</tool_response>\n\n{REGULAR}"
    )


def test_report_and_action_are_cut():
    view = Workspace(str, 9, limit=5).view(said("<report>123456</report>abcdefg"))
    assert "<report>\n12345 [cut]\n</report>\n\nabcde [cut]\n\n" in view[1]["content"]


def test_names():
    assert make_context("append", str, 5) == Append()
    assert make_context("workspace", str, 5) == Workspace(str, 5)
    assert make_context("window:0", str, 5) == Window(0)
    assert make_context("window:12", str, 5) == Window(12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Append",
        "window",
        "window:",
        "window:-1",
        "window:x",
        "window:1.5",
        "window:1 ",
        "workspace:2",
        "window:1\n",
    ],
)
def test_unknown_names(name):
    with pytest.raises(ConfigError, match="use append, window:K"):
        make_context(name, str, 5)


def test_bad_windows():
    with pytest.raises(ConfigError, match="-1 turns"):
        Window(-1)
    with pytest.raises(ConfigError, match="context"):
        make_context("window:" + "9" * 5000, str, 5)
