"""File and text tasks in a box, checked when the agent has submitted by what it never saw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from agentgym.envs import shell_files, shell_scripts, shell_text
from agentgym.envs.shell_base import ShellTask, is_done, is_trivial
from agentgym.sandboxes.base import Limits, Sandbox
from agentgym.sandboxes.tool_env import ToolEnv
from agentgym.sandboxes.tools import TOOLS

TASKS: dict[str, Callable[[np.random.Generator, int], ShellTask]] = {
    make.__name__: make
    for make in (
        shell_text.count_lines,
        shell_text.busiest_clients,
        shell_text.merge_lists,
        shell_text.replace_word,
        shell_text.collect_ports,
        shell_text.csv_totals,
        shell_text.csv_join,
        shell_text.json_edit,
        shell_files.rename_suffix,
        shell_files.remove_duplicates,
        shell_files.permissions,
        shell_files.repack_tar,
        shell_files.checksums,
        shell_files.sort_by_date,
        shell_files.copy_large,
        shell_scripts.mend_program,
        shell_scripts.write_program,
    )
}
"""Name to task."""

_INSTRUCTIONS = (
    "You work in a Linux workspace, in which there are files, bash, the usual small programs and python3, but no "
    "network. Do what the task says with the tools; paths begin in the workspace. When it is done, call submit with "
    'the answer, or with "done" if the task asks for none. What you have done is checked then, and the first '
    "submission counts."
)


def make_task(name: str, rng: np.random.Generator, level: int) -> ShellTask:
    """Draw a task in which there is something to do."""
    while is_trivial(task := TASKS[name](rng, level)):
        pass
    return task


class ShellEnv(ToolEnv):
    """A task in a workspace; the tools are ``python``, ``bash``, ``read_file``, ``write_file`` and ``submit``.

    The reward is 1 if all is right when the agent submits, else 0, and submitting ends the episode; ``truncated`` after
    ``max_steps`` actions. ``info`` holds ``score``, ``max_score``, ``success``, ``task`` (its name), ``level``, and
    with ``expert`` the ``expert_action``.
    """

    def __init__(
        self,
        task: str | None = None,
        level: int | None = None,
        split: str = "train",
        max_steps: int = 20,
        backend: str = "auto",
        limits: Limits | Mapping[str, Any] | None = None,
        timeout: float = 20.0,
        max_output: int = 8192,
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments; see `agentgym.sandboxes.tool_env.ToolEnv`."""
        super().__init__(
            {name: functools.partial(make_task, name) for name in TASKS},
            TOOLS,
            _INSTRUCTIONS,
            task=task,
            level=level,
            split=split,
            max_steps=max_steps,
            backend=backend,
            limits=limits,
            timeout=timeout,
            max_output=max_output,
            expert=expert,
            render_mode=render_mode,
        )

    def set_up(self, box: Sandbox, problem: ShellTask) -> None:
        """Write the files of the task."""
        for path, file in problem.files.items():
            box.put(path, file.data, file.mode)

    def is_right(self, box: Sandbox, problem: ShellTask, answer: str) -> bool:
        """Look at the workspace and run the agent's programs."""
        return is_done(box, problem, answer)
