"""Tools over a box: typed functions with Hugging Face JSON schemas, and the toolbox through which a model calls them.

A tool is a function whose first parameter is the box and which returns text for the model. The parameters after it are
the model's, described in the docstring; keyword-only ones are settings of the toolbox, which the model never sees.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import time
import typing
from collections.abc import Callable, Sequence
from typing import Any

from agentgym.sandboxes.base import Limits, Result, Sandbox

from agentgym.errors import ConfigError
from agentgym.types import ToolUse

Tool = Callable[..., str]

_JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ENDED = {
    "timeout": "[ended after {timeout:g} seconds: the time limit]",
    "output_limit": "[ended: more than {limits.flood_mb} MiB of output]",
    "memory_limit": "[ended: out of memory, the limit is {limits.memory_mb} MiB]",
    "died": "[the interpreter died]",
    "cancelled": "[cancelled]",
}


def python(box: Sandbox, code: str, *, timeout: float, max_output: int) -> str:
    """Run Python code in an interpreter that keeps its variables from call to call.

    Args:
        box: The box.
        code: The code. The value of its last expression is shown, as is what it prints.
        timeout: Seconds.
        max_output: Bytes of output that are shown.
    """
    return shown(box.python(code, timeout=timeout, max_output=max_output), timeout, box.limits)


def bash(box: Sandbox, command: str, *, timeout: float, max_output: int) -> str:
    """Run a command with bash, in the workspace. Every call starts a new shell; files stay.

    Args:
        box: The box.
        command: The command, of one line or several.
        timeout: Seconds.
        max_output: Bytes of each stream that are shown.
    """
    return shown(box.exec(command, timeout=timeout, max_output=max_output), timeout, box.limits)


def read_file(box: Sandbox, path: str, *, max_output: int) -> str:
    """Read a text file.

    Args:
        box: The box.
        path: Its path, from the workspace on.
        max_output: Bytes that are shown.
    """
    data = box.get(path)
    if b"\0" in data:
        return f"[{path} is no text: {len(data)} bytes, some of them NUL]"
    text = data[:max_output].decode(errors="replace")
    if len(data) > max_output:
        return f"{text}\n[cut: these are the first {max_output} of {len(data)} bytes]"
    return text or "[the file is empty]"


def write_file(box: Sandbox, path: str, content: str) -> str:
    """Write a text file, making its folders; a file that is there is replaced.

    Args:
        box: The box.
        path: Its path, from the workspace on.
        content: All of its text.
    """
    box.put(path, content)
    return f"[wrote {len(content.encode(errors='replace'))} bytes to {path}]"


def submit(box: Sandbox, answer: str) -> str:
    """Hand in the answer. It is final: nothing can be done after it.

    Args:
        box: The box.
        answer: The answer; "done" where the task asks for none.
    """
    return "[submitted]"


TOOLS: tuple[Tool, ...] = (python, bash, read_file, write_file, submit)


def shown(result: Result, timeout: float, limits: Limits) -> str:
    """The result of a call as text for a model; how long it took is left out, so that the same call says the same."""
    parts = [result.stdout.rstrip("\n")] if result.stdout.strip() else []
    if result.stderr.strip():
        parts += ["[standard error]", result.stderr.rstrip("\n")]
    if result.status != "ok":
        parts.append(_ENDED[result.status].format(timeout=timeout, limits=limits))
    elif result.exit_code:
        parts.append(f"[exit code {result.exit_code}]")
    if result.session_lost:
        parts.append("[the Python interpreter was ended: the variables of earlier calls are gone]")
    return "\n".join(parts) or "[no output]"


def schema(tool: Tool) -> dict[str, Any]:
    """The JSON schema of a tool, in the format of transformers' ``get_json_schema``.

    Raises:
        TypeError: If a parameter has no type that JSON has, or no description.
    """
    description, _, rest = inspect.cleandoc(tool.__doc__ or "").partition("\n\nArgs:\n")
    arguments = re.split(r"\n\n\w+:\n", rest)[0]
    said = {name: " ".join(text.split()) for name, text in re.findall(r"(?m)^ {4}(\w+): ((?:.|\n {5,})*)", arguments)}
    types = typing.get_type_hints(tool)
    properties, required = {}, []
    for name, parameter in _parameters(tool).items():
        if types.get(name) not in _JSON_TYPES or name not in said:
            raise TypeError(f"tool {tool.__name__}: {name} needs a type of str, int, float or bool and a description")
        properties[name] = {"type": _JSON_TYPES[types[name]], "description": said[name]}
        if parameter.default is parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    function = {"name": tool.__name__, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def _parameters(tool: Tool) -> dict[str, inspect.Parameter]:
    """The parameters that the model fills."""
    kept = [p for p in inspect.signature(tool).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: p for p in kept[1:]}


class _Watched:
    """A box that remembers the last result of a call, for the log."""

    def __init__(self, box: Sandbox):
        self._box = box
        self.last: Result | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    def exec(self, *arguments: Any, **settings: Any) -> Result:
        self.last = self._box.exec(*arguments, **settings)
        return self.last

    def python(self, *arguments: Any, **settings: Any) -> Result:
        self.last = self._box.python(*arguments, **settings)
        return self.last


class Toolbox:
    """The tools of one box, as a model calls them: by name, with JSON arguments, for text.

    Attributes:
        box: The box.
        submitted: The answer that was handed in, or None.
        calls: The calls that were made, in their order; whoever reads them may empty the list.
    """

    def __init__(
        self, box: Sandbox, tools: Sequence[Tool] = TOOLS, timeout: float = 20.0, max_output: int = 8192
    ) -> None:
        """Offer tools.

        Args:
            box: The box.
            tools: Which ones.
            timeout: Seconds that a call may take.
            max_output: Bytes of each stream that a call may show.

        Raises:
            ConfigError: If a setting is out of its range.
        """
        check_settings(timeout, max_output)
        self.box = box
        self.submitted: str | None = None
        self.calls: list[ToolUse] = []
        self._tools = {tool.__name__: tool for tool in tools}
        self._schemas = {name: schema(tool)["function"]["parameters"] for name, tool in self._tools.items()}
        self._settings = {"timeout": timeout, "max_output": max_output}

    def schemas(self) -> list[dict[str, Any]]:
        """The JSON schemas of the tools."""
        return [schema(tool) for tool in self._tools.values()]

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Call a tool.

        Returns:
            What it says, or what was wrong with the call.

        Raises:
            SandboxError: If the box failed, which is nobody's fault but ours.
        """
        started, box, status = time.perf_counter(), _Watched(self.box), "error"
        error = self._wrong(name, arguments)
        if not error:
            tool = self._tools[name]
            wanted = inspect.signature(tool).parameters
            settings = {k: v for k, v in self._settings.items() if k in wanted}
            try:
                said, status = tool(box, **arguments, **settings), "ok"
            except (OSError, ConfigError) as failed:  # no such file, no space, a path that is none, ...
                file = isinstance(failed, OSError) and failed.filename
                reason = failed.strerror if isinstance(failed, OSError) and failed.strerror else str(failed)
                error = f"{reason}: {file}" if file else reason
            if tool is submit:
                self.submitted = arguments["answer"]
        if error:
            said = f"[error: {error}]"
        given, ended = json.dumps(arguments, ensure_ascii=False), box.last
        use = ToolUse(name, given, said, status, seconds=time.perf_counter() - started)
        if ended is not None:
            use.status, use.exit_code = ended.status, ended.exit_code
        self.calls.append(use)
        return said

    def _wrong(self, name: str, arguments: dict[str, Any]) -> str:
        """What is wrong with a call, empty if nothing is."""
        if name not in self._tools:
            return f"there is no tool {_cut(name)}{_near(name, self._tools)}; the tools are {', '.join(self._tools)}"
        properties, required = self._schemas[name]["properties"], self._schemas[name].get("required", [])
        for key in arguments:
            if key not in properties:
                near = _near(key, properties)
                return f"{name} has no argument {_cut(key)}{near}; it takes {', '.join(properties) or 'none'}"
        for key in required:
            if key not in arguments:
                return f"{name} needs the argument {key}"
        for key, value in arguments.items():
            kind = properties[key]["type"]
            if not _is(value, kind):
                return f"the argument {key} of {name} must be of type {kind}, not {_kind(value)}"
        return ""


def check_settings(timeout: float, max_output: int) -> None:
    """Check what calls of tools may take.

    Raises:
        ConfigError: If a setting is out of its range.
    """
    if not 0 < timeout <= 3600:
        raise ConfigError(f"timeout is {timeout}: a call of a tool may take more than 0 and at most 3600 seconds")
    if not 256 <= max_output <= 65536:
        raise ConfigError(f"max_output is {max_output}: a call of a tool may show 256 to 65536 bytes of a stream")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, {"string": str, "integer": int, "number": int | float}.get(kind, bool))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _JSON_TYPES.get(type(value), "array" if isinstance(value, list) else "object")


def _cut(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")


def _near(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name[:40], list(names), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
