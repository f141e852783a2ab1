"""DataSciCoding of POAD (Wen et al., 2024): the agent writes the Python that fits a classifier to a table.

A program is scored by the mean ROC-AUC over five random halves of the rows. It runs in a box and gets the training
half; once it has fitted a model, the box gets the features of the other half and gives probabilities back as plain
numbers, which are compared with the labels here. The box is emptied between halves, so that none sees another's labels.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any

import gymnasium as gym
import numpy as np
from agentgym.envs.data_science_box import DRIVER, probabilities, shown
from agentgym.envs.tables import Table, builtin, read_csv
from agentgym.sandboxes import choose, open_sandbox
from agentgym.sandboxes.base import Limits, Sandbox, SandboxLost
from gymnasium.error import ResetNeeded

from agentgym.errors import ConfigError, SandboxError, missing, unknown
from agentgym.spaces import UnicodeText
from agentgym.types import ToolUse

ATTEMPTS = 5
"""Programs an episode may try."""

HALVES = 5
"""Random halves of the rows, over which a program's score is the mean."""

FORBIDDEN = ("GridSearchCV", "SVC")
"""Names that no program may use: both may take very long."""

EXPERT = """\
from sklearn.ensemble import ExtraTreesClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
trees = ExtraTreesClassifier(50, random_state=0)
model = make_pipeline(SimpleImputer(), VotingClassifier([("linear", linear), ("trees", trees)], voting="soft"))
model.fit(X_train, y_train)"""
"""A program that does well on every data set here."""

_SPLITS = ("train", "dev", "test")
_NAMES = re.compile(rf"\b({'|'.join(FORBIDDEN)})\b")
_LOADING_S = 60.0
_LIMITS = Limits(memory_mb=1024)
_PRELOAD = ("pandas", "sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline")
_ENDED = {
    "timeout": "It took longer than the time limit.",
    "memory_limit": f"It needed more memory than {_LIMITS.memory_mb} MiB.",
    "output_limit": f"It printed more than {_LIMITS.flood_mb} MiB.",
    "died": "Its process ended.",
}


class Failed(Exception):
    """What the agent's program did wrong, in words for the agent.

    Attributes:
        kind: ``forbidden``, ``error``, ``probabilities``, or the status of the box's result.
    """

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class DataScienceEnv(gym.Env[str, str]):
    """Write the body of a function that fits a scikit-learn classifier; an action is Python code.

    The reward is the mean ROC-AUC over five random halves of the rows (one against one with more than two classes),
    which ends the episode, or -1 if the program fails, with the error as the next observation; ``truncated`` after five
    programs.

    ``info`` holds ``score`` (the ROC-AUC, 0 before there is one), ``success`` (whether there is one), ``attempts``,
    ``failure`` (what kind of failure the last program was, "" if none), ``task`` (name of the data set), and with
    ``expert`` the ``expert_action``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012
    max_steps = ATTEMPTS

    def __init__(
        self,
        dataset: str = "breast_cancer",
        csv: str | None = None,
        target: str = "class",
        split: str = "train",
        time_limit: float = 30.0,
        backend: str = "auto",
        expert: bool = False,
        render_mode: str | None = None,
    ):
        """Check the arguments; the box is opened by the first program.

        Args:
            dataset: One of `agentgym.envs.tables.DATASETS`.
            csv: A CSV file to use instead.
            target: Its column with the class.
            split: ``train``, ``dev`` or ``test``: different halves of the same rows.
            time_limit: Seconds of a program for all five halves together.
            backend: Backend of the sandbox.
            expert: Put ``expert_action`` into ``info``.
            render_mode: None or ``ansi``.

        Raises:
            ConfigError: A wrong argument.
            MissingDependency: scikit-learn is not installed.
            SandboxUnavailable: If ``backend`` is ``auto`` and there is none here.
        """
        if split not in _SPLITS:
            raise unknown("split", split, _SPLITS)
        if not time_limit > 0:
            raise ConfigError(f"time_limit is {time_limit}: it must be above 0 seconds")
        if render_mode not in (None, "ansi"):
            raise unknown("render_mode", str(render_mode), ["ansi"])
        try:
            import sklearn.metrics  # noqa: F401
        except ImportError as error:
            raise missing("scikit-learn", "datascience") from error
        choose(backend, "data")
        self._own = None if csv is None else read_csv(csv, target)
        self.dataset = builtin(dataset).name
        self.split, self.time_limit, self.backend, self.expert = split, time_limit, backend, expert
        self.render_mode = render_mode
        self.instructions = (
            "You write Python code that fits a scikit-learn classifier to a table of data. Answer with the body of the "
            "function that is shown, or with the whole function. It must leave a fitted classifier with predict_proba "
            f"in the variable model. Its score is the mean ROC-AUC over {HALVES} random halves of the rows: it is "
            f"fitted to one half and tested on the other, all within {time_limit:g} seconds. numpy, scipy, pandas and "
            f"scikit-learn can be imported; {' and '.join(FORBIDDEN)} are not allowed. If the code fails you see the "
            f"error and may try again, {ATTEMPTS} times in all."
        )
        self.observation_space = UnicodeText(1 << 20)
        self.action_space = UnicodeText()
        self.calls: list[ToolUse] = []
        self._box: Sandbox | None = None
        self._playing = False
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Show a data set.

        Args:
            seed: Chooses the halves. Drawn from ``np_random`` if None.
            options: ``dataset``, ``split``, ``expert`` for this episode instead of the constructor's.

        Returns:
            The task, and ``info``.

        Raises:
            ConfigError: A wrong option.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        dataset = options.pop("dataset", self.dataset)
        split = options.pop("split", self.split)
        self._hints = bool(options.pop("expert", self.expert))
        if options:
            raise unknown("reset option", next(iter(options)), ["dataset", "split", "expert"])
        if split not in _SPLITS:
            raise unknown("split", str(split), _SPLITS)
        number = int(self.np_random.integers(1 << 31)) if seed is None else seed
        self._table = self._own or builtin(dataset)
        self._halves = _halves(self._table, [_SPLITS.index(split), number])
        self._attempts, self._score, self._failure, self._playing = 0, None, "", True
        rows = len(self._halves[0][0])
        self._text = (
            f"{self._table.describe()}\n\n"
            "def build_model(X_train, y_train):\n"
            f"    # X_train: float array of shape ({rows}, {len(self._table.features)})\n"
            f"    # y_train: int array of shape ({rows},), 0 to {len(self._table.classes) - 1}\n"
            "    ...\n"
            "    return model"
        )
        return self._text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run a program on every half.

        Raises:
            ResetNeeded: Before ``reset`` or after the end of an episode.
            SandboxError: If the box failed, which says nothing about the program.
        """
        if not self._playing:
            raise ResetNeeded("call reset() before step(): no episode is running")
        self._attempts += 1
        self.calls = []
        try:
            self._score, self._failure = self._evaluate(action), ""
            self._text = f"The mean ROC-AUC over {HALVES} halves is {self._score:.4f}."
        except Failed as failed:
            self._failure = failed.kind
            self._text = f"This code failed:\n\n{action}\n\n{failed}\n\nWrite it again without the mistake."
        except BaseException:
            self.close()
            raise
        terminated = self._score is not None
        truncated = not terminated and self._attempts >= ATTEMPTS
        self._playing = not (terminated or truncated)
        reward = -1.0 if self._score is None else self._score
        return self._text, reward, terminated, truncated, self._info()

    def render(self) -> str | None:
        """The last observation, if ``render_mode`` is ``ansi``."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Remove the box. Safe to call again."""
        self._playing = False
        if self._box is not None:
            box, self._box = self._box, None
            box.close()

    def _info(self) -> dict[str, Any]:
        info = {
            "score": self._score or 0.0,
            "success": self._score is not None,
            "attempts": self._attempts,
            "failure": self._failure,
            "task": self._table.name,
        }
        if self._hints:
            info["expert_action"] = EXPERT if self._playing else None
        return info

    def _evaluate(self, code: str) -> float:
        """The mean ROC-AUC of a program, rounded to 6 digits."""
        from sklearn.metrics import roc_auc_score

        if found := _NAMES.search(code):
            raise Failed("forbidden", f"{found[1]} is not allowed.")
        scores, left = [], self.time_limit
        for train, test in self._halves:
            table = self._table
            given, left = self._probabilities(code, train, test, left)
            if len(table.classes) == 2:
                scores.append(roc_auc_score(table.y[test], given[:, 1]))
            else:
                scores.append(roc_auc_score(table.y[test], given, multi_class="ovo"))
        return round(float(np.mean(scores)), 6)

    def _probabilities(self, code: str, train: np.ndarray, test: np.ndarray, left: float) -> tuple[np.ndarray, float]:
        """What a program predicts for one half from the other one, and how many seconds are left after it."""
        table, box = self._table, self._empty_box()
        classes = len(table.classes)
        try:
            box.put("program.py", code)
            box.put("X_train.npy", _npy(table.X[train]))
            box.put("y_train.npy", _npy(table.y[train]))
        except OSError as error:
            raise SandboxError(f"the data set {table.name} does not fit into the sandbox: {error}") from error
        left -= self._call(box, "_fit()", left)
        try:  # what stands in the way now, the program has put there
            box.put("X_test.npy", _npy(table.X[test]))
            left -= self._call(box, f"_predict({classes})", left)
            data = box.get("probabilities.bin", max_bytes=len(test) * classes * 8)
            return probabilities(data, len(test), classes), left
        except (OSError, ValueError) as error:
            raise Failed("probabilities", f"No probabilities came out: {error}.") from error

    def _call(self, box: Sandbox, code: str, left: float) -> float:
        """Make a call that runs the agent's code, and return how many seconds it took."""
        result = box.python(code, timeout=max(left, 0.001), max_output=16384)
        name, half = code.partition("(")[0].strip("_"), len(self.calls) // 2 + 1
        status, seconds = result.status, result.duration
        self.calls.append(ToolUse(name, json.dumps({"half": half}), result.stdout, status, result.exit_code, seconds))
        if status == "cancelled":
            raise SandboxError("the call was cancelled")
        if status in _ENDED:
            raise Failed(status, _ENDED[status])
        if not result.ok:
            raise Failed("error", shown(result.stdout))
        return seconds

    def _empty_box(self) -> Sandbox:
        """The box, without files or processes, and with the driver in its session."""
        if self._box is not None:
            try:
                self._box.reset()
            except SandboxLost:  # a program may leave behind what cannot be cleared away
                self._box = None
        if self._box is None:
            self._box = open_sandbox(backend=self.backend, image="data", limits=_LIMITS, preload=_PRELOAD)
        result = self._box.python(f"{DRIVER}\n_labels_at_hand()", timeout=_LOADING_S)
        if not result.ok or result.stdout.strip() not in ("True", "False"):
            raise SandboxError(f"the sandbox has no scikit-learn that works: {shown(result.stdout)}")
        if result.stdout.strip() == "True" and self._own is None:
            raise SandboxError(
                "the sandbox holds scikit-learn's own data sets, where a program could read the labels: use an image "
                "of agentgym sandbox build"
            )
        return self._box


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _halves(table: Table, entropy: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows for training and for testing, each class split evenly."""
    from sklearn.model_selection import StratifiedShuffleSplit

    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    splitter = StratifiedShuffleSplit(HALVES, test_size=0.5, random_state=seed)
    return [(train, test) for train, test in splitter.split(table.X, table.y)]
