"""Tool calls in a model's text: every format is read, what cannot be read is said, what is written is read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.actions import Parsed, Tools
from agentgym.tool_calls import MOST, Call, CallError, canonical, parse_calls, write_calls

GO = Call("python", {"code": "print(1)\nprint('</tool_call>')"})
END = Call("submit", {"answer": "3"})
GO_JSON = json.dumps({"name": GO.name, "arguments": GO.arguments})
GO_LLAMA = json.dumps({"name": GO.name, "parameters": GO.arguments})
END_JSON = '{"name": "submit", "arguments": {"answer": "3"}}'
GO_OPENAI = {"id": "c1", "type": "function", "function": {"name": GO.name, "arguments": json.dumps(GO.arguments)}}
END_OPENAI = {"function": {"name": "submit", "arguments": {"answer": "3"}}}

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
MARKS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "</think>", "<|im_end|>", "<|python_tag|>", "```json\n", '"', "\n"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
WORDS = st.lists(MARKS | TEXT, max_size=5).map("".join)
CALLS = st.lists(
    st.builds(Call, TEXT.map(str.strip).filter(bool), st.dictionaries(TEXT, VALUE | WORDS, max_size=3)),
    min_size=1,
    max_size=MOST,
)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        # Hermes and Qwen
        (f"<tool_call>\n{GO_JSON}\n</tool_call>", [GO]),
        (f"First this.\n<tool_call>{GO_JSON}</tool_call>\n<tool_call>{END_JSON}</tool_call> That's it.", [GO, END]),
        (f"I write <tool_call> tags: <tool_call> {END_JSON} </tool_call>", [END]),
        (f"<tool_call>\n{END_JSON}", [END]),
        (f"<tool_call>{GO_JSON}\n{END_JSON}</tool_call>", [GO, END]),
        (f"<tool_call>```json\n{END_JSON}\n```</tool_call>", [END]),
        (f"<tool_call>[{GO_JSON}, {END_JSON}]</tool_call>", [GO, END]),
        ('<tool_call>{"name": "submit", "arguments": "{\\"answer\\": \\"3\\"}"}</tool_call>', [END]),
        ('<tool_call>{"name": "ls"}</tool_call>', [Call("ls", {})]),
        ('<tool_call>{"name": "ls", "arguments": null}</tool_call>', [Call("ls", {})]),
        ('<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>', [Call("f", {"x": "a\nb"})]),
        (f'<think>maybe <tool_call>{GO_JSON}</tool_call></think>\n<tool_call>{END_JSON}</tool_call>', [END]),
        (f'it was opened by the template <tool_call>{{"</think><tool_call>{END_JSON}</tool_call>', [END]),
        # Llama 3
        (GO_LLAMA, [GO]),
        (f"  \n{GO_LLAMA}\n", [GO]),
        (f"<|python_tag|>{GO_LLAMA}", [GO]),
        (f"I call it. <|python_tag|> {GO_LLAMA}; {END_JSON}", [GO, END]),
        (f"```json\n{GO_LLAMA}\n```", [GO]),
        (f"I call it:\n```\n{GO_LLAMA}\n```\nand\n```json\n{END_JSON}\n```", [GO, END]),
        ('The data:\n```json\n{"a": 1}\n```\nthe call:\n```json\n' + END_JSON + "\n```", [END]),
        ("```python\n{x}\n```\n```json\n" + END_JSON + "\n```", [END]),
        # OpenAI
        (json.dumps({"tool_calls": [GO_OPENAI, END_OPENAI]}), [GO, END]),
        (json.dumps({"role": "assistant", "content": None, "tool_calls": [GO_OPENAI]}), [GO]),
        (json.dumps(GO_OPENAI), [GO]),
        (json.dumps([GO_OPENAI, END_OPENAI]), [GO, END]),
        ('{"function": {"name": "ls", "arguments": ""}}', [Call("ls", {})]),
    ],
)  # fmt: skip
def test_formats(text, calls):
    assert parse_calls(text) == calls
    assert Tools().parse(text, ()) == Parsed(canonical(calls))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tool call in the answer"),
        ("The answer is 3.", "no tool call in the answer"),
        ('{"answer": 3}', "no tool call in the answer"),
        ("<tool_call>ls</tool_call>", "no tool call in the answer"),
        (f"<tool_call>{END_JSON}</tool_call></think> so it is", "no tool call in the answer"),
        ('<tool_call>{"name": "ls", "arguments": {</tool_call>', "not valid JSON: .*line 1 column 41"),
        (f'<tool_call>{END_JSON}</tool_call><tool_call>{{"name": }}</tool_call>', "not valid JSON"),
        ('{"name": "submit", "arguments": {"answer": 3}', "not valid JSON: Expecting ',' delimiter"),
        ('```json\n{"name": "submit",\n```', "not valid JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN is no JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "1e999 is too large"),
        ('<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>", "not valid JSON"),
        ('<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "arguments of f are not valid JSON"),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "arguments of f must be an object"),
        ('<tool_call>{"name": "f", "arguments": "3"}</tool_call>', "arguments of f must be an object"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'must be {"name": "...", "arguments": {...}}'),
        ('<tool_call>{"name": " ", "arguments": {}}</tool_call>', "must be"),
        ('<tool_call>{"name": 3}</tool_call>', "must be"),
        ("<tool_call>[3]</tool_call>", "must be"),
        ("<tool_call>[]</tool_call>", "list of tool calls is empty"),
        ('{"tool_calls": []}', "list of tool calls is empty"),
        (f"<tool_call>{END_JSON}</tool_call>" * (MOST + 1), f"at most {MOST} calls"),
        ("<tool_call>[" + f"{END_JSON}," * MOST + END_JSON + "]</tool_call>", f"at most {MOST} calls"),
        ("<tool_call>" + "[" * 100_000, "nested too deeply"),
        ('{"tool_calls": ' + "[" * 400 + "3" + "]" * 400 + "}", "must be"),
        ('{"name": "f", "arguments": ' + '{"a":' * 100_000, "nested too deeply"),
    ],
    ids=range(26),
)  # fmt: skip
def test_what_cannot_be_read_is_said(text, message):
    with pytest.raises(CallError, match=message.replace("{", r"\{")) as caught:
        parse_calls(text)
    assert Tools().parse(text, ()) == Parsed(None, " ".join(str(caught.value).split())[:250])


@given(CALLS)
def test_what_is_written_is_read_back(calls):
    codec = Tools()
    action = canonical(calls)
    assert parse_calls(action) == parse_calls(write_calls(calls)) == calls
    assert codec.parse(codec.write(action, ()), ()) == Parsed(action)
    assert codec.parse(f"Think. </think> So:\n{codec.write(action, ())} Good.", ()) == Parsed(action)
    action.encode()


def test_arguments_hold_text_that_every_file_takes():
    [call] = parse_calls('{"name": "submit", "arguments": {"answer": "half \\ud800 a pair"}}')
    assert call.arguments == {"answer": "half ? a pair"}


def test_an_expert_call_reads_like_that_of_a_model():
    action = canonical([Call("python", {"code": "a < b"})])
    assert Tools().write(action, ()) == '<tool_call>\n{"name": "python", "arguments": {"code": "a < b"}}\n</tool_call>'
