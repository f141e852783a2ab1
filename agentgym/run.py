"""A run folder: what was asked for, what happened, and enough to go on after a kill.

``config.yaml`` (resolved), ``versions.json``, ``metrics.jsonl``, ``trajectories/*.jsonl``, ``tokens.json``,
``checkpoints/step_*``, ``final/``, ``learning_curve.png``, ``report.html``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agentgym import store
from agentgym.config import dump
from agentgym.errors import ConfigError, MissingDependency
from agentgym.evaluate import Evaluation
from agentgym.types import Trajectory

_PACKAGES = ("agentgym-lab", "gymnasium", "numpy", "torch", "transformers", "textworld", "textworld-express")

_MAY_CHANGE = ("steps", "epochs", "save_every", "show_every", "eval")

console = Console(stderr=True)


class Run:
    """Writes a run folder."""

    def __init__(self, folder: str | Path, config: Any, resume: bool = False):
        """Create the folder, or open it again.

        Raises:
            ConfigError: If it holds another run already, or there is none to resume, or the config differs.
        """
        self.dir = Path(folder)
        self.metrics_file = self.dir / "metrics.jsonl"
        text = dump(config)
        old = self.dir / "config.yaml"
        if resume:
            if not old.is_file():
                raise ConfigError(f"nothing to resume in {self.dir}: config.yaml is not there")
            self._check_same(yaml.safe_load(old.read_text()) or {}, yaml.safe_load(text))
        elif old.exists():
            raise ConfigError(f"{self.dir} holds a run already: use --resume, or another --out")
        try:
            (self.dir / "trajectories").mkdir(parents=True, exist_ok=True)
            old.write_text(text)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.dir}: {error}") from error
        (self.dir / "versions.json").write_text(json.dumps(versions(), indent=1))

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for key in sorted(old.keys() | new.keys()):
            if key not in _MAY_CHANGE and old.get(key) != new.get(key):
                raise ConfigError(
                    f"{self.dir} was started with {key}: {old.get(key)}, not {new.get(key)}: resume with the "
                    f"same settings (only {', '.join(_MAY_CHANGE)} may change), or start anew in another --out"
                )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a line of metrics."""
        with open(self.metrics_file, "a") as file:
            file.write(json.dumps({"step": step, **{k: _round(v) for k, v in metrics.items()}}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget metrics and trajectories after a step: the run goes on from its checkpoint."""
        if self.metrics_file.exists():
            lines = self.metrics_file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            with store.atomic_file(self.metrics_file) as file:
                file.write("".join(kept).encode())
        for sample in (self.dir / "trajectories").glob("step_*.jsonl"):
            if int(sample.stem.split("_")[1]) > step:
                sample.unlink()

    def trajectories(self, name: str, trajectories: list[Trajectory]) -> None:
        """Save sample trajectories under ``trajectories/NAME.jsonl``."""
        store.write(self.dir / "trajectories" / f"{name}.jsonl", trajectories)

    def evaluated(self, name: str, result: Evaluation) -> None:
        """Keep the result of an evaluation in ``evaluation.json``."""
        file = self.dir / "evaluation.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        results[name] = result.to_dict()
        with store.atomic_file(file) as out:
            out.write(json.dumps(results, indent=1).encode())

    def evaluations(self) -> dict[str, Evaluation]:
        """The results kept so far."""
        file = self.dir / "evaluation.json"
        return {k: Evaluation.from_dict(v) for k, v in json.loads(file.read_text()).items()} if file.exists() else {}

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


def progress(**kwargs: Any) -> Progress:
    """A progress bar on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        **kwargs,
    )


def _round(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
