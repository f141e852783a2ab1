"""Python code, run as an interpreter does it; and the loop of the session, which is a child of the worker."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import types

from agentgym.sandboxes.worker.frames import read_exactly, write_all

CODE_IN, STATUS_OUT = 200, 201
"""Descriptors at which the session reads code and writes exit codes."""


def run_code(code: str, module: types.ModuleType) -> int:
    """Run code in a module and show the value of its last expression; return the exit code."""
    import ast
    import linecache
    import traceback

    try:
        tree = ast.parse(code, "<code>")
        linecache.cache["<code>"] = (len(code), None, code.splitlines(True), "<code>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), module.__dict__)
            if value is not None:
                print(repr(value))
        status = 0
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        place = error.__traceback__
        while place and place.tb_frame.f_code.co_filename != "<code>":
            place = place.tb_next
        with contextlib.suppress(Exception):
            sys.stdout.flush()  # what was printed before the error stands before it
        traceback.print_exception(type(error), error, place)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return status & 255


def main_module() -> types.ModuleType:
    """An empty module under the name that programs have."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return module


def serve_session() -> None:
    """Run what comes in; interrupts reach only the agent's code. Ends with EOFError."""
    os.set_inheritable(CODE_IN, False)
    os.set_inheritable(STATUS_OUT, False)
    sys.path.insert(0, "")
    module = main_module()
    interrupts = {signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
    while True:
        token, length = struct.unpack(">QI", read_exactly(CODE_IN, 12))
        code = read_exactly(CODE_IN, length).decode()
        status = 130
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)
            status = run_code(code, module)
        except KeyboardInterrupt:
            pass
        while True:  # one that comes now is for the call that has just ended
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                break
            except KeyboardInterrupt:
                continue
        write_all(STATUS_OUT, struct.pack(">QI", token, status))
