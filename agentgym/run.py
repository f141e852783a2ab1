"""A run folder: what was asked for, what happened, and enough to go on after a kill.

``config.yaml`` (resolved), ``versions.json``, ``metrics.jsonl``, ``trajectories/*.jsonl``, ``tokens.json``,
``checkpoints/step_*``, ``final/``, ``learning_curve.png``, ``report.html``.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import math
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from agentgym import store
from agentgym.config import dump, load
from agentgym.errors import ConfigError, MissingDependency
from agentgym.evaluate import HARMLESS, Evaluation
from agentgym.types import Trajectory

_PACKAGES = ("agentgym-lab", "gymnasium", "numpy", "torch", "transformers", "textworld", "textworld-express")

_MAY_CHANGE = (
    "steps",
    "epochs",
    "save_every",
    "show_every",
    "eval.every",
    "eval.episodes",
    "stop_after",
    "env.processes",
    "optim.lr",
    "rollout.context_limit",
    *(f"rollout.{k}" for k in HARMLESS),
)

console = Console(stderr=True)


class Run:
    """Writes a run folder."""

    def __init__(self, folder: str | Path, config: Any, resume: bool = False):
        """Create the folder, or open it again. One in which nothing was measured or learned yet may start anew.

        Raises:
            ConfigError: If it holds another run already, or there is none to resume, or the config differs, or
                another process works in it.
        """
        self.dir = Path(folder)
        self.metrics_file = self.dir / "metrics.jsonl"
        text = dump(config)
        old = self.dir / "config.yaml"
        if resume and not old.is_file():
            raise ConfigError(f"nothing to resume in {self.dir}: config.yaml is not there")
        if not resume and (self.metrics_file.exists() or (self.dir / "checkpoints").exists()):
            raise ConfigError(f"{self.dir} holds a run already: use --resume, or another --out")
        try:
            (self.dir / "trajectories").mkdir(parents=True, exist_ok=True)
            self._lock()
            if resume:
                self._check_same(load(old), yaml.safe_load(text))
            with store.atomic_file(old) as file:
                file.write(text.encode())
            (self.dir / "versions.json").write_text(json.dumps(versions(), indent=1))
        except OSError as error:
            raise ConfigError(f"cannot write to {self.dir}: {error}") from error

    def _lock(self) -> None:
        """Keep other processes out for as long as this one lives."""
        self._locked = open(self.dir / ".lock", "w")  # noqa: SIM115 (the lock ends with the file)
        try:
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(f"another process works in {self.dir}: wait for it, or use another --out") from error

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        before, now = _flat(old), _flat(new)
        for key in sorted(before.keys() | now.keys()):
            free = any(f"{key}.".startswith(f"{may}.") for may in _MAY_CHANGE)
            if not free and (key in before) != (key in now):
                raise ConfigError(f"{self.dir} holds a run of other settings (for one, {key}): use another --out")
            if not free and before[key] != now[key]:
                raise ConfigError(
                    f"{self.dir} was started with {key}: {before[key]}, not {now[key]}: resume with the "
                    f"same settings (only {', '.join(_MAY_CHANGE)} may change), or start anew in another --out"
                )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line of metrics."""
        with open(self.metrics_file, "a") as file:
            file.write(json.dumps({"step": step, **{k: _round(v) for k, v in metrics.items()}}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what came after a step, the last evaluation too: the run goes on from its checkpoint."""
        results = {k: v for k, v in self._results().items() if v["step"] <= step and k != "after"}
        evaluated = {result["step"] for result in results.values()}
        kept = []
        for line in self.metrics_file.read_bytes().splitlines(keepends=True) if self.metrics_file.exists() else []:
            row = self._metrics(line) if line.endswith(b"\n") else {"step": math.inf}
            if row["step"] <= step and ("eval/return" not in row or row["step"] in evaluated):
                kept.append(line)
        if results != self._results():
            self._keep(results)
        if self.metrics_file.exists():
            with store.atomic_file(self.metrics_file) as file:
                file.write(b"".join(kept))
        for sample in (self.dir / "trajectories").glob("*step_*.jsonl"):
            if int(sample.stem.rpartition("_")[2]) > step:
                sample.unlink()

    def _metrics(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            return {**row, "step": float(row["step"])}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            damage = f"{line[:60]!r} does not hold the metrics of a step"
            raise ConfigError(f"{self.metrics_file} is damaged: {damage}; restore it, or remove this line") from error

    def trajectories(self, name: str, trajectories: list[Trajectory]) -> None:
        """Save sample trajectories under ``trajectories/NAME.jsonl``."""
        store.write(self.dir / "trajectories" / f"{name}.jsonl", trajectories)

    def evaluated(self, name: str, step: int, result: Evaluation, log: bool = True) -> None:
        """Log the result of an evaluation, and keep it in ``evaluation.json``."""
        if log:
            self.log(step, result.metrics())
        self._keep({**self._results(), name: {"step": step, **result.to_dict()}})

    def evaluations(self) -> dict[str, Evaluation]:
        """The results kept so far."""
        return {name: Evaluation.from_dict(result) for name, result in self._results().items()}

    def _results(self) -> dict[str, dict[str, Any]]:
        file = self.dir / "evaluation.json"
        if not file.exists():
            return {}
        try:
            found: dict[str, dict[str, Any]] = json.loads(file.read_bytes())
            for result in found.values():
                Evaluation.from_dict({**result, "step": float(result["step"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{file} is damaged ({reason}): restore it, or remove it to evaluate again") from error
        return found

    def _keep(self, results: dict[str, dict[str, Any]]) -> None:
        with store.atomic_file(self.dir / "evaluation.json") as file:
            file.write(json.dumps(results, indent=1).encode())

    def finish(self) -> None:
        """Draw the learning curve and write the report."""
        from agentgym.plots import learning_curve
        from agentgym.report import write_report

        try:
            learning_curve(self.dir)
        except MissingDependency as error:
            console.print(f"no learning_curve.png: {error}")
        write_report(self.dir)

    def tokens(self, tokenizer: Any) -> None:
        """Save the text of every token, for the viewer."""
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        texts = [tokenizer.convert_tokens_to_string([p]) if p is not None else "" for p in pieces]
        (self.dir / "tokens.json").write_text(json.dumps(texts))


@contextmanager
def shielded() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it happens wholly or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(kind, lambda number, _: held.append(number)) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, old, strict=True):
            signal.signal(kind, handler)
    if held:
        raise KeyboardInterrupt


def versions() -> dict[str, str]:
    """Versions of what a run depends on, and the git commit of the working folder."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "argv": " ".join(sys.argv)}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10)
        found["git"] = git.stdout.strip() if git.returncode == 0 else "not a git checkout"
    except (OSError, subprocess.TimeoutExpired):
        found["git"] = "git is not installed"
    return found


class LineProgress(Progress):
    """A progress bar that a log file can show: where there is no terminal, a line at every tenth of a task."""

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task."""
        super().advance(task_id, advance)
        self._line(task_id)

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        """Update a task."""
        super().update(task_id, **kwargs)
        self._line(task_id)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars; nothing where there is no terminal."""
        return super().get_renderables() if console.is_terminal else []

    def _line(self, task_id: TaskID) -> None:
        task = self.tasks[task_id]
        if console.is_terminal or self.disable or not task.total:
            return
        tenth = int(10 * task.completed / task.total)
        if tenth > task.fields.get("tenth", 0):
            task.fields["tenth"] = tenth
            note = task.fields["note"]
            console.print(
                f"{task.description} {task.completed:.0f}/{task.total:.0f}, {task.elapsed or 0:.0f} s  {note}",
                highlight=False,
            )


def progress(**kwargs: Any) -> Progress:
    """A progress bar on standard error; lines where that is no terminal."""
    return LineProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        **kwargs,
    )


def _flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings by their path, ``optim.lr``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{where}{key}.") if isinstance(value, dict) and value else {f"{where}{key}": value}
    return out


def _round(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
