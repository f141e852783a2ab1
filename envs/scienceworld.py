"""ScienceWorld (Wang et al., 2022) behind Gymnasium: thirty tasks of school science in a simulated house.

The simulator is the Java program of the ``scienceworld`` package. Its own wrapper starts a Java process for each
environment and asks for every valid action in every step; here all environments of a Python process share one
Java process, and a step asks for the answer, the score and whether the task is over.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from agentgym.envs.jvm import JavaEngine, Jvm
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, EnvError, missing, unknown
from agentgym.spaces import UnicodeText

SPLITS = {"train": "getVariationsTrain", "dev": "getVariationsDev", "test": "getVariationsTest"}
"""The engine's own splits of each task's variations, and what it calls them."""

SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
"""What ``simplification`` may name; ``easy`` stands alone, the others may be joined with commas."""

JAVA_OPTIONS = (
    "-Xmx512m",  # or the heap grows to a quarter of the machine's memory before it is first collected
    "-XX:+UseSerialGC",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",  # sets are ordered by identity hashes, which are random otherwise
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
)

_INSTRUCTIONS = (
    "You are in a text game about science, in a house with a workshop, a greenhouse and a garden. Do what the task "
    "says; where it tells you to focus on something, focus only on the right thing: a wrong focus loses the game. "
    "Commands look like: 'look around', 'look at X', 'look in X', 'inventory', 'task', 'open X', 'close X', "
    "'go to X', 'pick up X', 'put down X', 'move X to Y', 'pour X into Y', 'dunk X into Y', 'mix X', 'activate X', "
    "'deactivate X', 'use X on Y', 'read X', 'eat X', 'flush X', 'connect X to Y', 'disconnect X', 'focus on X', "
    "'wait', 'wait1'. If the game asks which of several things you mean, answer with its number."
)


_UNKNOWN = "No known action matches that input."


class _Globals:
    """The global variables of the engine, which its simulators would share: handed from one to the other.

    They are the random numbers, the number of the next object, and the simplifications in force.

    Attributes:
        lock: Held by the thread that uses the engine.
        counts: Number of variations of each task.
        variations: Variations of each task in each split.
    """

    def __init__(self, jvm: Jvm):
        self.call, self.detach = jvm.call, jvm.gateway.detach
        self.lock = threading.RLock()
        self.owner: ScienceWorldEnv | None = None
        find = self.call(getattr, jvm.gateway.jvm.java.lang.Class, "forName")

        def singleton(name: str) -> Any:
            return self.call(self.call(self.call(find, f"{name}$").getField, "MODULE$").get, None)

        self.random = singleton("scala.util.Random")
        self.generator = self.call(self.call(find, "scala.util.Random").getDeclaredField, "self")
        self.call(self.generator.setAccessible, True)
        self.ids = singleton("util.UniqueIdentifier")
        self.simplifier = singleton("main.scala.scienceworld.runtime.SimplifierProcessor")
        self.simplification = ""
        self._read_variations(jvm)

    def _read_variations(self, jvm: Jvm) -> None:
        server = self.call(jvm.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface)
        self.counts: dict[str, int] = {}
        self.variations: dict[str, dict[str, list[int]]] = {}
        for task in jvm.join(self.call(server.getTaskNames)):
            self.counts[task] = self.call(server.getTaskMaxVariations, task)
            self.variations[task] = {}
            self.call(getattr(server, "taskStr_$eq"), task)
            for split, method in SPLITS.items():
                numbers = self.call(getattr(server, method))
                self.variations[task][split] = json.loads(self.call(numbers.toString))
                self.detach(numbers)
        self.detach(server)

    def hand_to(self, env: ScienceWorldEnv) -> None:
        """Put in force what was in force when this environment last had its turn."""
        last, self.owner = self.owner, None
        if last is not None:
            last._next_id = self.call(self.ids.count)
        self.call(self.generator.set, self.random, env._random)
        self.call(getattr(self.ids, "count_$eq"), env._next_id)
        if env._simplified != self.simplification:
            self.detach(self.call(self.simplifier.parseSimplificationStr, env._simplified))
            self.simplification = env._simplified
        self.owner = env


ENGINE = JavaEngine("ScienceWorld", "scienceworld", "scienceworld", JAVA_OPTIONS, prepare=_Globals)


class ScienceWorldEnv(gym.Env[str, str]):
    """A task of ScienceWorld; observations and actions are text.

    The reward is the change of the score, which is 1 at the end of a solved task and -1 after a fatal mistake.
    ``terminated`` when the task is over, ``truncated`` after ``max_steps`` actions. ``info`` holds ``score``,
    ``max_score``, ``success``, ``task``, ``task_name``, ``variation``, with ``admissible`` the
    ``admissible_commands`` (sorted), and with ``expert`` the ``expert_action``: the next command of the engine's
    own solution while the agent keeps to it, then None, with ``admissible_commands`` in its place.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        task: str | None = None,
        variation: int | None = None,
        simplification: str = "",
        split: str = "train",
        max_steps: int = 100,
        expert: bool = False,
        admissible: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments and take a simulator in the shared JVM.

        Args:
            task: Name of a task; each reset draws one if None.
            variation: Number of a variation of the task, whatever its split; each reset draws one if None.
            simplification: Names from ``SIMPLIFICATIONS``, joined with commas.
            split: ``train``, ``dev`` or ``test``: where variations are drawn from.
            max_steps: Actions until ``truncated``.
            expert: Put ``expert_action`` into ``info``; a reset takes 0.1 to 10 s longer.
            admissible: Put ``admissible_commands`` into ``info``; a step takes 10 times as long.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
            MissingDependency: The package or Java is not installed.
        """
        try:
            from scienceworld.constants import ID2TASK
        except ImportError as error:
            raise missing("scienceworld", "scienceworld") from error
        self.tasks = tuple(ID2TASK.values())
        self.task, self.variation, self.split = task, variation, split
        self.simplification = simplification
        self._check(task, variation, simplification, split)
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        self.max_steps, self.expert, self.admissible, self.render_mode = max_steps, expert, admissible, render_mode
        self.instructions = _INSTRUCTIONS
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._playing = False
        self._text = ""
        self._simplified, self._next_id = "", 0
        self._server: Any = None
        self._random: Any = None
        self._jvm: Jvm | None = ENGINE.acquire()
        try:
            self._globals: _Globals = self._jvm.prepared
            self._random = self._call(self._jvm.gateway.jvm.java.util.Random, 0)
            self._pick(task, variation, split, 0)
            with self._turn():
                self._server = self._call(self._jvm.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface)
            self._engine_step = self._server.step
            self._engine_score = self._server.getScore
            self._engine_over = self._server.getCompleted
            # a simulator is made with a table of all tasks, and with each load makes and keeps another: 10 MB
            self._drop_tasks = getattr(self._server, "taskMaker_$eq")
            self._call(self._drop_tasks, None)
        except BaseException:
            self.close()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a task.

        Args:
            seed: Chooses the variation, number ``seed % n`` of the ``n`` in the split; if no task is given,
                task number ``seed % 30`` and of its ``n`` variations number ``seed // 30 % n``.
                Drawn from ``np_random`` if None.
            options: ``task``, ``variation``, ``simplification``, ``split``, ``expert`` for this episode instead of
                the constructor's.

        Returns:
            The task and what the agent sees, and ``info``.

        Raises:
            ConfigError: A wrong option.
            EnvError: The engine failed.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        task = options.pop("task", self.task)
        variation = options.pop("variation", self.variation)
        simplification = options.pop("simplification", self.simplification)
        split = options.pop("split", self.split)
        expert = bool(options.pop("expert", self.expert))
        if options:
            known = ["task", "variation", "simplification", "split", "expert"]
            raise unknown("reset option", next(iter(options)), known)
        self._check(task, variation, simplification, split)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self._playing = False
        task, variation = self._pick(task, variation, split, number)
        with self._turn():
            if message := self._call(self._server.load, task, variation, simplification, expert):
                raise EnvError(f"ScienceWorld {task}: {message.strip()}")
            self._simplified = ",".join(self._call(self._server.getSimplificationsUsed).split(", "))
            self._globals.simplification = self._simplified
            self._gold = self._join(self._server.getGoldActionSequence) if expert else None
            self._about = {
                "max_score": 1.0,
                "task": self._call(self._server.getTaskDescription).strip(),
                "task_name": task,
                "variation": variation,
            }
            self._call(self._drop_tasks, None)
            look = self._call(self._engine_step, "look around")
            self._score, self._steps, self._playing = 0.0, 0, True
            self._text = f"{self._about['task']}\n\n{look.strip()}"
            return self._text, self._info(success=False)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one command; one that the game does not know costs a step.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            EnvError: The engine failed or its process died.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        command = " ".join(action.split()).encode("utf-8", "replace").decode()
        with self._turn():
            self._text = self._call(self._engine_step, command).strip()
            score = round(100 * self._call(self._engine_score)) / 100
            over = self._call(self._engine_over)
            self._steps += 1
            reward, self._score = score - self._score, score
            terminated = over or score < 0
            truncated = not terminated and self._steps >= self.max_steps
            self._playing = not (terminated or truncated)
            if self._gold:
                self._follow(command.lower())
            return self._text, reward, terminated, truncated, self._info(success=terminated and score == 1)

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Give the simulator back; the JVM ends with its last user. Safe to call again."""
        jvm, self._jvm = self._jvm, None
        self._playing = False
        if jvm is not None:
            jvm.release(*(thing for thing in (self._server, self._random) if thing is not None))

    def _check(self, task: str | None, variation: int | None, simplification: str, split: str) -> None:
        """Check what can be checked without the engine."""
        if task is not None and task not in self.tasks:
            raise unknown("task", str(task), self.tasks)
        if split not in SPLITS:
            raise unknown("split", str(split), SPLITS)
        if variation is not None:
            if task is None:
                raise ConfigError(f"variation={variation} needs a task: choose one of {', '.join(self.tasks)}")
            if not isinstance(variation, int) or isinstance(variation, bool):
                raise ConfigError(f"variation must be an integer, not {variation!r}")
        if not isinstance(simplification, str):
            raise ConfigError(f"simplification must be names joined with commas, not {simplification!r}")
        names = simplification.split(",") if simplification else []
        for name in names:
            if name not in SIMPLIFICATIONS:
                raise unknown("simplification", name, SIMPLIFICATIONS)
        if "easy" in names and len(names) > 1:
            raise ConfigError(f"simplification={simplification}: easy stands alone")
        if "noElectricalAction" in names and (task is None or "power-component" in task or "conductivity" in task):
            which = task or "one of the tasks that are drawn"
            raise ConfigError(f"simplification noElectricalAction: {which} needs electrical actions")

    def _pick(self, task: str | None, variation: int | None, split: str, number: int) -> tuple[str, int]:
        """Task and variation: those asked for, or else those of that number."""
        if task is None:
            number, place = divmod(number, len(self.tasks))
            task = self.tasks[place]
        if variation is None:
            variations = self._globals.variations[task][split]
            return task, variations[number % len(variations)]
        if not 0 <= variation < self._globals.counts[task]:
            last = self._globals.counts[task] - 1
            raise ConfigError(f"variation of {task} must be 0 to {last}, not {variation}")
        return task, variation

    def _follow(self, command: str) -> None:
        """Go on in the engine's solution, or drop it if the command may have changed what it starts from."""
        assert self._gold
        asked = self._gold[0].isdigit()  # the game wants to know which thing is meant, and takes other words for a no
        if command == self._gold[0].lower():
            del self._gold[0]
        elif command not in ("task", "help") and (asked or not (command == "objects" or self._text == _UNKNOWN)):
            self._gold = []

    def _info(self, success: bool) -> dict[str, Any]:
        info = {"score": self._score, "success": success, **self._about}
        hint = self._gold[0] if self._gold and self._playing else None
        if self._gold is not None:
            info["expert_action"] = hint
        if self.admissible or (self._gold is not None and hint is None and self._playing):
            info["admissible_commands"] = sorted(set(self._join(self._server.getValidActionObjectCombinations)))
        return info

    def _join(self, method: Any) -> list[str]:
        return self._jvm.join(self._call(method))  # type: ignore[union-attr]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Have the engine's global variables to ourselves."""
        if self._jvm is None:
            raise EnvError("this environment is closed")
        self._jvm.check()
        with self._globals.lock:
            try:
                if self._globals.owner is not self:
                    self._globals.hand_to(self)
                yield
            except EnvError:
                self._playing = False
                raise

    def _call(self, method: Any, *args: Any) -> Any:
        if self._jvm is None:
            raise EnvError("this environment is closed")
        return self._jvm.call(method, *args)
