"""What the learning studies share: a grid of runs, several at a time and each resumable; intervals, tables, plots."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from agentgym.report_data import read_metrics

_TOP = Path(__file__).parents[2]
DOCS, CONFIGS = _TOP / "docs" / "learning", _TOP / "examples" / "configs"
Panel = Callable[[Any], None]
"""Draws on matplotlib's axes."""
COLOURS = ("#2f6690", "#c2562d", "#5a9367", "#8a5aa8", "#b8860b", "#5f6b76")


def arguments(description: str | None, name: str) -> argparse.Namespace:
    """Read the command line of a study."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each condition (default: 5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/learning") / name, help="folder of the runs")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(names: Sequence[str], args: argparse.Namespace) -> None:
    """Start this script once for each run, ``jobs`` at a time; what is finished already is not done again.

    Runs end with this process, whether it is interrupted or terminated.

    Raises:
        SystemExit: If a run failed; its ``log.txt`` says why.
    """
    started: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def one(name: str) -> str | None:
        folder = args.out / name
        if finished(folder):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("ab") as log:
            job = subprocess.Popen(
                [sys.executable, sys.argv[0], "--out", str(args.out), "--run", name],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            started.append(job)
            code = job.wait()
        print(f"{name}: {'done' if code == 0 else f'failed, see {folder}/log.txt'}", flush=True)
        return None if code == 0 else name

    with ThreadPoolExecutor(args.jobs) as threads:
        try:
            failed = [name for name in threads.map(one, names) if name]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for job in started:
                job.terminate()
            raise
    if failed:
        raise SystemExit(f"{len(failed)} of {len(names)} runs failed; run this again to go on with them")


def main(
    description: str | None,
    name: str,
    methods: Sequence[str],
    warm_start: Callable[[Path], None],
    learn: Callable[[str, int, Path, Path], None],
    report: Callable[[Path, int], None],
) -> None:
    """The command line of a study in which all runs begin with one model: run what is missing, and report.

    Args:
        description: What the study is.
        name: Folder of its runs.
        methods: Its conditions.
        warm_start: Make the model, in a folder.
        learn: Run a condition and seed from the folder of the model, in a folder.
        report: Print the table and draw the picture, from the folder of all runs and the number of seeds.
    """
    args = arguments(description, name)
    if args.run == "start":
        warm_start(args.out / "start")
    elif args.run:
        method, seed = args.run.rsplit("-", 1)
        learn(method, int(seed), args.out / "start", args.out / args.run)
    else:
        run_all(["start"], args)
        run_all([f"{method}-{seed}" for seed in range(args.seeds) for method in methods], args)
        report(args.out, args.seeds)


def folders_of(out: Path, methods: Mapping[str, tuple[str, Any]], seeds: int) -> dict[str, list[Path]]:
    """Title of each condition -> the folders of its runs; ``methods`` has the title first."""
    return {title: [out / f"{method}-{seed}" for seed in range(seeds)] for method, (title, _) in methods.items()}


def finished(folder: Path) -> bool:
    """Whether a run has its last evaluation."""
    file = folder / "run" / "evaluation.json"
    return file.exists() and "after" in json.loads(file.read_text())


def train(trainer: Any, settings: Mapping[str, Any], folder: Path) -> None:
    """Run a trainer in ``folder/run``, or go on with what was interrupted."""
    out = folder / "run"
    trainer.main(trainer.make_config(settings), out, resume=(out / "config.yaml").exists())


def result(folder: Path, when: str = "after", key: str = "success") -> float:
    """Mean over the held-out episodes of a run."""
    return float(json.loads((folder / "run" / "evaluation.json").read_text())[when][key]["mean"])


def curve(folder: Path, key: str) -> np.ndarray:
    """A metric at every training step ``[steps]``."""
    points = read_metrics(folder / "run")[key]
    return np.array([points[step] for step in sorted(points)])


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean over seeds and the half width of its 95 % t interval."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def number(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Mean and interval."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def percent(values: Sequence[float] | np.ndarray) -> str:
    """Mean and interval in percent (or points of percent)."""
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def compared(runs: Mapping[str, Sequence[Path]]) -> list[list[str]]:
    """A row for each condition: name, success, that of each seed, and how much more than in the first condition."""
    after = {name: np.array([result(folder) for folder in folders]) for name, folders in runs.items()}
    base = next(iter(after.values()))
    return [
        [name, percent(x), ", ".join(f"{100 * each:.0f}" for each in x), "" if x is base else percent(x - base)]
        for name, x in after.items()
    ]


def curves(runs: Mapping[str, Sequence[Path]], key: str, title: str, label: str, window: int = 5) -> Panel:
    """A panel with a metric of each condition at every training step."""

    def draw(axes: Any) -> None:
        for colour, (name, folders) in zip(COLOURS, runs.items(), strict=False):
            band(axes, [curve(folder, key) for folder in folders], name, colour, window)
        axes.set(title=title, xlabel="training step", ylabel=label)

    return draw


def figure(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side."""
    drawn = Figure(figsize=(4.6 * len(panels), 3.6), dpi=120, layout="constrained")
    for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(drawn).print_png(str(path))


def band(axes: Any, curves: Sequence[np.ndarray], label: str, colour: str, window: int = 5) -> None:
    """Mean of several seeds' curves, each smoothed over ``window`` steps, with the 95 % t interval as a band."""
    kernel = np.ones(window)
    smooth = np.array([np.convolve(c, kernel)[: len(c)] / np.minimum(np.arange(1, len(c) + 1), window) for c in curves])
    mean = smooth.mean(0)
    half = stats.t.ppf(0.975, len(smooth) - 1) * smooth.std(0, ddof=1) / np.sqrt(len(smooth))
    steps = np.arange(1, len(mean) + 1)
    axes.plot(steps, mean, color=colour, label=label)
    axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
