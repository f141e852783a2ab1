"""The tools in real boxes: what a model reads for each kind of result; a bad call is an answer, not an error."""

from __future__ import annotations

import contextlib
import inspect

import pytest
from agentgym.sandboxes import Limits, open_sandbox
from agentgym.sandboxes.base import Result
from agentgym.sandboxes.tools import TOOLS, Toolbox, python, schema, shown, submit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym.errors import ConfigError, SandboxError
from agentgym.tool_calls import Call, canonical, parse_calls

LIMITS = Limits(memory_mb=96, flood_mb=1, workspace_mb=4)


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def box(request):
    """A small box of every backend that can be had here."""
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    with open_sandbox(request.param, limits=LIMITS) as opened:
        yield opened


@pytest.fixture
def tools(box):
    """All tools over a clean box."""
    box.reset()
    return Toolbox(box, timeout=5.0, max_output=1000)


def visible(tool):
    """The tool as a function of what the model fills alone, as other libraries take tools."""

    def function():
        raise NotImplementedError

    signature = inspect.signature(tool)
    kept = [p for p in list(signature.parameters.values())[1:] if p.kind is not p.KEYWORD_ONLY]
    function.__name__, function.__doc__ = tool.__name__, tool.__doc__
    function.__signature__ = inspect.Signature(kept)
    function.__annotations__ = {
        p.name: {"str": str, "int": int, "float": float, "bool": bool}[p.annotation] for p in kept
    }
    return function


def search(box, words: str, most: int = 3, exact: bool = False, share: float = 0.5) -> str:
    """Search for words, as a tool
    of somebody else might.

    It has a second paragraph.

    Args:
        box: The box.
        words: What to look for: several
            words, or one.
        most: How many results.
        exact: Whether all words must be there.
        share: Least share of words.

    Returns:
        What was found.
    """
    return f"{words!r} {most!r} {exact!r} {share!r}"


@pytest.mark.parametrize("tool", [*TOOLS, search], ids=lambda tool: tool.__name__)
def test_schemas_are_those_of_transformers(tool):
    utils = pytest.importorskip("transformers.utils")
    assert schema(tool) == utils.get_json_schema(visible(tool))


def test_a_tool_without_a_type_or_a_description_is_refused():
    def one(box, words: list) -> str:
        """Do.

        Args:
            words: Some.
        """

    def other(box, words: str) -> str:
        """Do."""

    for tool in (one, other):
        with pytest.raises(TypeError, match="words needs a type of str, int, float or bool and a description"):
            schema(tool)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("python", {"code": "x = 6\nx * 7"}, "42"),
        ("python", {"code": "None"}, "[no output]"),
        ("python", {"code": "print(1)\n1/0"}, "ZeroDivisionError: division by zero\n[exit code 1]"),
        ("python", {"code": "def"}, "SyntaxError: invalid syntax\n[exit code 1]"),
        ("python", {"code": "import sys\nsys.exit(3)"}, "[exit code 3]"),
        ("bash", {"command": "echo a; echo b >&2; exit 4"}, "a\n[standard error]\nb\n[exit code 4]"),
        ("bash", {"command": "echo hi > f; cat f; pwd"}, "hi\n/workspace"),
        ("bash", {"command": "kill -9 $$"}, "[exit code -9]"),
        ("bash", {"command": "no-such-program"}, "no-such-program: command not found\n[exit code 127]"),
        ("write_file", {"path": "a/b.txt", "content": "hé\n"}, "[wrote 4 bytes to a/b.txt]"),
        ("submit", {"answer": "42"}, "[submitted]"),
    ],
)
def test_what_a_model_reads(tools, name, arguments, said):
    assert tools.call(name, arguments).endswith(said)
    assert tools.submitted == ("42" if name == "submit" else None)


def test_a_traceback_stands_after_what_was_printed(tools):
    assert tools.call("python", {"code": "print('first')\n1/0"}).startswith("first\nTraceback")


def test_files(tools):
    for text in ("one\ntwo\n", "", "é" * 400):
        tools.call("write_file", {"path": "f", "content": text})
        assert tools.call("read_file", {"path": "f"}) == (text or "[the file is empty]")
    tools.call("write_file", {"path": "f", "content": "a" * 3000})
    assert tools.call("read_file", {"path": "f"}) == "a" * 1000 + "\n[cut: these are the first 1000 of 3000 bytes]"
    tools.call("bash", {"command": "head -c 10 /dev/zero > f"})
    assert tools.call("read_file", {"path": "f"}) == "[f is no text: 10 bytes, some of them NUL]"
    tools.call("bash", {"command": "printf '\\377\\376' > f"})
    assert tools.call("read_file", {"path": "f"}) == "\ufffd\ufffd"
    assert tools.box.get("f") == b"\xff\xfe"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("read_file", {"path": "no"}, "No such file or directory: no"),
        ("read_file", {"path": "/"}, "not a regular file: /"),
        ("read_file", {"path": ""}, "'' is no path"),
        ("read_file", {"path": "a\0b"}, "is no path"),
        ("write_file", {"path": "/etc/x", "content": ""}, "Read-only file system: /etc/x"),
        ("write_file", {"path": "big", "content": "x" * (5 << 20)}, "No space left on device: big"),
        ("write_file", {"path": ".", "content": ""}, ": ."),
        ("bash", {"command": ""}, "must not be empty"),
        ("bash", {"command": "a\0b"}, "must not be empty or hold a NUL character"),
        ("bash", {}, "bash needs the argument command"),
        ("bash", {"cmd": "ls"}, "bash has no argument 'cmd' (did you mean command?); it takes command"),
        ("bash", {"command": "ls", "timeout": 9}, "bash has no argument 'timeout'; it takes command"),
        ("bash", {"command": None}, "the argument command of bash must be of type string, not null"),
        ("bash", {"command": ["ls"]}, "must be of type string, not array"),
        ("bash", {"command": {"a": 1}}, "must be of type string, not object"),
        ("bash", {"command": True}, "must be of type string, not boolean"),
        ("submit", {"answer": 42}, "the argument answer of submit must be of type string, not integer"),
        ("Bash", {"command": "ls"}, "there is no tool 'Bash' (did you mean bash?); the tools are python, bash"),
        ("box", {}, "there is no tool 'box'"),
        ("x" * 9000, {}, "there is no tool 'xxxxx"),
        ("bash", {"x" * 9000: ""}, "bash has no argument 'xxxxx"),
    ],
    ids=range(21),
)  # fmt: skip
def test_a_bad_call_is_answered(tools, name, arguments, said):
    answer = tools.call(name, arguments)
    assert answer.startswith("[error: ")
    assert said in answer
    assert len(answer) < 300
    assert tools.submitted is None
    assert tools.call("bash", {"command": "echo fine"}) == "fine"


def test_types_are_those_of_json(box):
    tools = Toolbox(box, [search])
    assert tools.call("search", {"words": "a"}) == "'a' 3 False 0.5"
    assert tools.call("search", {"words": "a", "most": 1, "exact": True, "share": 1}) == "'a' 1 True 1"
    for wrong in ({"most": 1.0}, {"most": True}, {"exact": 1}, {"share": "1"}, {"share": False}):
        assert "must be of type" in tools.call("search", {"words": "a", **wrong})


def test_what_ends_a_call_is_said_plainly(box):
    box.reset()
    tools = Toolbox(box, timeout=0.5, max_output=1000)
    assert tools.call("python", {"code": "x = 1"}) == "[no output]"
    slow = tools.call("python", {"code": "import time\ntime.sleep(9)"})
    assert slow.endswith("KeyboardInterrupt\n[ended after 0.5 seconds: the time limit]")
    assert tools.call("python", {"code": "x"}) == "1"  # the interpreter lives on
    assert tools.call("bash", {"command": "sleep 9"}) == "[ended after 0.5 seconds: the time limit]"
    dead = "[the interpreter died]\n[the Python interpreter was ended: the variables of earlier calls are gone]"
    assert tools.call("python", {"code": "import os\nos._exit(0)"}) == dead
    assert "NameError" in tools.call("python", {"code": "x"})
    tools = Toolbox(box, timeout=20.0, max_output=1000)
    flood = tools.call("bash", {"command": "yes"})
    assert flood.endswith("[ended: more than 1 MiB of output]")
    assert "bytes cut]..." in flood
    assert len(flood) < 1100
    assert tools.call("python", {"code": "'x' * 10**6"}).count("x") < 1000


def test_memory_is_said_plainly(tools):
    if "memory" not in tools.box.guarantees:
        pytest.skip(f"{tools.box.backend} does not limit memory here")
    answer = tools.call("python", {"code": "x = bytearray(500 << 20)\nx[:] = b'x' * len(x)"})
    assert "out of memory" in answer or "MemoryError" in answer, answer
    assert tools.call("bash", {"command": "echo fine"}) == "fine"


def test_every_status_has_words():
    words = {}
    for status in ("ok", "timeout", "output_limit", "memory_limit", "died", "cancelled"):
        words[status] = shown(Result(status, None, "", "", 0.0), 3.0, LIMITS)
    assert len(set(words.values())) == 6
    assert words["memory_limit"] == "[ended: out of memory, the limit is 96 MiB]"


def test_the_same_call_says_the_same(tools):
    first = tools.call("bash", {"command": "sleep 0.1; echo a"})
    assert first == tools.call("bash", {"command": "sleep 0.2; echo a"}) == "a"


def test_a_box_that_fails_is_an_error_and_not_an_answer(box):
    with open_sandbox(box.backend, limits=LIMITS) as other:
        tools = Toolbox(other)
        other.close()
        for name, arguments in (("bash", {"command": "ls"}), ("read_file", {"path": "a"})):
            with pytest.raises(SandboxError):
                tools.call(name, arguments)
        assert tools.call("bash", {}).startswith("[error: ")  # what is wrong with a call needs no box


def test_only_the_tools_that_are_offered_can_be_called(box):
    tools = Toolbox(box, [python, submit])
    assert [s["function"]["name"] for s in tools.schemas()] == ["python", "submit"]
    assert "there is no tool 'bash'; the tools are python, submit" in tools.call("bash", {"command": "ls"})


@pytest.mark.parametrize(
    "settings",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}, {"max_output": 10}, {"max_output": 1 << 30}],
)
def test_settings_are_checked(box, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Toolbox(box, **settings)


ARGUMENTS = st.dictionaries(
    st.sampled_from(["code", "command", "path", "content", "answer", "x"]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8) | st.lists(st.text(max_size=2), max_size=2),
    max_size=3,
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from([t.__name__ for t in TOOLS]) | st.text(max_size=5), arguments=ARGUMENTS)
def test_whatever_is_called_is_answered(box, name, arguments):
    with contextlib.suppress(ValueError):
        [call] = parse_calls(canonical([Call(name, arguments)]))
        answer = Toolbox(box, timeout=5.0).call(call.name, call.arguments)
        assert isinstance(answer, str)
        assert answer
    box.ping()
