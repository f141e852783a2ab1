"""What the checks work with: instances that are closed afterwards, reference episodes, the options for hints."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from agentgym.checks.subject import Step, Subject, Transcript, difference, steps, transcripts

ODD = (
    "",
    " \n\t ",
    "xyzzy",
    "\\",
    "\x00",
    "\x1b[2J",
    "日本語 \U0001f600",
    "half a pair \ud800",
    "a" * 10_000,
    "word " * 2_000,
    "go north\ngo north",
    "go north. take all then quit",
    "quit",
    "restart",
    "save",
    '{"name": "act", "arguments": {}}',
    "<action></action>",
    "<|im_end|><|im_start|>system",
    "%s %d {0} {x} ${x} `x` $(x)",
    "'; DROP TABLE games; --",
    "-1",
    "1e999",
    "None",
    "[" * 500,
)
"""Answers that a language model may give."""
_NO_LIMIT = 1000


class Bench:
    """One subject in this process.

    Attributes:
        options: Options of every reset.
        hinted: The same with hints, if the environment can give them.
    """

    def __init__(self, subject: Subject, command: list[str], environment: dict[str, str]):
        """Prepare.

        Args:
            subject: What is checked.
            command: Starts another process like this one, which answers the request ``transcripts``.
            environment: Its environment variables.
        """
        self.subject, self.seeds = subject, subject.seeds
        self._command, self._environment = command, environment
        self.options = dict(subject.options)
        self.hinted = {**self.options, "expert": True}
        self._made: list[gym.Env[str, str]] = []
        self._kept: gym.Env[str, str] | None = None

    def make(self) -> gym.Env[str, str]:
        """Make an instance; `close` closes it. One more is kept open, so that a shared engine goes on running."""
        self._kept = self._kept or self.subject.make()
        self._made.append(self.subject.make())
        return self._made[-1]

    def close(self) -> None:
        """Close all instances made since the last time."""
        made, self._made = self._made, []
        for env in made:
            with contextlib.suppress(Exception):  # the check `close` looks at that
                env.close()

    def release(self) -> None:
        """Close the one that is kept open, too."""
        self.close()
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @functools.cached_property
    def _compared(self) -> tuple[list[Transcript], str | None]:
        env, other = self.make(), self.make()
        first = transcripts(env, self.seeds, self.hinted)
        for where, again in (("played again", env), ("played in another instance", other)):
            if found := difference(self.seeds, first, transcripts(again, self.seeds, self.hinted)):
                return first, f"{where}: {found}"
        return first, None

    @property
    def reference(self) -> list[Transcript]:
        """The transcript of each seed, played alone."""
        return self._compared[0]

    @property
    def drift(self) -> str | None:
        """How the same seeds and actions came out otherwise the next time; then other differences say nothing."""
        return self._compared[1]

    def in_another_process(self) -> list[Transcript]:
        """The same transcripts from another process."""
        done = subprocess.run(
            self._command, input=b"transcripts\n", env=self._environment, stdout=subprocess.PIPE, check=True
        )
        found: list[Transcript] = json.loads(done.stdout)
        return found

    def limit(self, env: gym.Env[str, str]) -> tuple[int, str]:
        """Most steps of an episode, and where that is said."""
        if env.spec is not None and env.spec.max_episode_steps:
            return env.spec.max_episode_steps, "max_episode_steps"
        if steps := getattr(env.unwrapped, "max_steps", None):
            return int(steps), "max_steps"
        return _NO_LIMIT, "it has neither max_episode_steps nor the attribute max_steps"

    def play(self, env: gym.Env[str, str], seed: int, actions: Iterator[str] | None) -> Step:
        """Play to the end, or to the limit, and return the last step."""
        return list(itertools.islice(steps(env, seed, self.options, actions), self.limit(env)[0] + 1))[-1]

    @functools.cached_property
    def played(self) -> list[tuple[int, int, Step]]:
        """Every step of an episode of each seed, with seed and number."""
        env, found = self.make(), []
        for seed in self.seeds:
            steps_of_one = itertools.islice(steps(env, seed, self.hinted, None), self.limit(env)[0] + 1)
            found += [(seed, number, step) for number, step in enumerate(steps_of_one)]
        return found

    @functools.cached_property
    def guided(self) -> dict[int, list[Step]]:
        """For each seed an episode in which the expert is followed, until it has no more to say."""
        env = self.make()
        return {seed: list(self._guided(env, seed)) for seed in self.seeds}

    def _guided(self, env: gym.Env[str, str], seed: int) -> Iterator[Step]:
        said: list[Any] = []
        for step in itertools.islice(steps(env, seed, self.hinted, iter(said.pop, None)), self.limit(env)[0] + 1):
            said.append(step.info.get("expert_action"))
            yield step
