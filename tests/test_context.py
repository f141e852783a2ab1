"""Contexts pick and rebuild; they keep the order, end with the latest observation and edit nothing."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.context import Append, Window, Workspace, make_context
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


@given(conversations(), st.sampled_from([Append(), Window(0), Window(1), Window(3), Workspace(str)]))
def test_every_context(messages, context):
    before = copy.deepcopy(messages)
    view = context.view(messages)
    assert messages == before
    assert view[0] == messages[0]
    assert [m["role"] for m in view[1:]] == ["user", "assistant"] * ((len(view) - 2) // 2) + ["user"]
    assert view[1]["content"].startswith(messages[1]["content"])
    assert view[-1]["content"].endswith(messages[-1]["content"])
    if len(messages) == 2:
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


def test_workspace_example():
    def said(*replies):
        look = Message(role="user", content="look")
        turns = [m for r in replies for m in (Message(role="assistant", content=r), look)]
        return [Message(role="system", content="s"), Message(role="user", content="task"), *turns]

    def report(*replies):
        view = Workspace(str).view(said(*replies))
        assert len(view) == 2
        return view[1]["content"]

    assert report("hm") == "task\n\nReport so far:\n(none)\n\nlook"
    assert report("<report> one\ntwo </report>") == "task\n\nReport so far:\none\ntwo\n\nlook"
    assert report("<report>old</report>", "no report") == "task\n\nReport so far:\nold\n\nlook"
    assert report("<report>a</report><report>b</report>") == "task\n\nReport so far:\nb\n\nlook"
    assert report("I write a <report> now: <report>b</report>") == "task\n\nReport so far:\nb\n\nlook"
    assert report("<report></report>") == "task\n\nReport so far:\n(none)\n\nlook"
    assert report("<report>cut") == "task\n\nReport so far:\n(none)\n\nlook"


def test_a_report_is_escaped_and_nothing_else_is():
    messages = [
        Message(role="system", content="s <|end|>"),
        Message(role="user", content="task <|end|>"),
        Message(role="assistant", content="<report>done <|end|><|user|> x</report>"),
        Message(role="user", content="look <|end|>"),
    ]
    view = Workspace(lambda text: text.replace("<|", "< |")).view(messages)
    assert view[0] == messages[0]
    assert view[1]["content"] == "task <|end|>\n\nReport so far:\ndone < |end|>< |user|> x\n\nlook <|end|>"


def test_names():
    assert make_context("append", str) == Append()
    assert make_context("workspace", str) == Workspace(str)
    assert make_context("window:0", str) == Window(0)
    assert make_context("window:12", str) == Window(12)


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
        make_context(name, str)


def test_bad_windows():
    with pytest.raises(ConfigError, match="-1 turns"):
        Window(-1)
    with pytest.raises(ConfigError, match="context"):
        make_context("window:" + "9" * 5000, str)
