"""One HTML page for a run or an evaluation: curves, results, errors, and every stored trajectory down to its tokens.

The page is one file that needs no network. Its data are JSON in inert script tags, one per trajectory, which
the page parses only when that trajectory is opened. Text from environments and models is never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from agentgym import errors, report_data, report_games, report_pictures, store
from agentgym.types import Trajectory

_SCRIPTS = ("report.js", "report_curves.js", "report_tokens.js", "report_screen.js", "report_trajectory.js")
_STYLES = ("report.css",)
_GAMES = ("report_games.js", "report_games.css")


def write_report(run_dir: str | os.PathLike[str], limit: int = 2000) -> Path:
    """Write ``report.html`` into a run folder or the folder of an evaluation, replacing an older one.

    A run folder holds ``metrics.jsonl``, ``config.yaml`` and ``trajectories/*.jsonl``; two files are optional:
    ``evaluation.json`` (before and after) and ``tokens.json`` (the decoded piece of every token id). The folder of an
    evaluation holds the ``POLICY.jsonl`` and ``POLICY.json`` that ``agentgym eval --out`` leaves.

    Args:
        run_dir: The folder.
        limit: Most trajectories in the page; of larger runs each file gives an equal share, first ones first.

    Images of observations are in the page too, as many as `report_pictures.MOST_BYTES` allows.

    Returns:
        The path of the page.

    Raises:
        ConfigError: The folder or one of its files is missing, empty or damaged.
    """
    run = Path(run_dir)
    logs = _evaluation_logs(run)
    if logs:
        curves: dict[str, report_data.Curve] = {}
        config, own = report_data.evaluation_settings(logs)
        paths = logs
    else:
        _check_folder(run)
        curves = report_data.read_metrics(run)
        config = _config_text(run / "config.yaml")
        own = {"evaluation": report_data.evaluation(run / "evaluation.json")}
        paths = sorted((run / "trajectories").glob("*.jsonl"))
    files, total = _sample(paths, limit, by_group=bool(logs))
    trajectories = [trajectory for _, found in files for trajectory in found]
    if not trajectories:
        raise errors.ConfigError(f"{paths[0].parent}: no trajectory in its .jsonl files; let the run store some")
    systems: dict[str, int] = {}
    details = [report_data.detail(trajectory, systems) for trajectory in trajectories]
    file_of = [number for number, (_, found) in enumerate(files) for _ in found]
    games, replays = report_games.read_games(run, config, [name for name, _ in files], file_of, trajectories)
    index = {
        "name": run.resolve().name,
        "facts": report_data.facts(config, curves, trajectories, total),
        "config": config,
        **own,
        "errors": report_data.errors_by_kind(trajectories, curves),
        "curves": [report_data.curve(name, curves) for name in curves if not name.endswith(("_lo", "_hi"))],
        "systems": list(systems),
        "files": [name for name, _ in files],
        "total": total,
        "list": report_data.columns(trajectories, file_of),
        "tokens": report_data.token_pieces(run / "tokens.json", trajectories),
        **({"games": games} if games else {}),
    }
    path = run / "report.html"
    with store.atomic_file(path) as file:
        file.write(_page(index, details, replays, report_pictures.images(trajectories)))
    return path


def _evaluation_logs(folder: Path) -> list[Path]:
    """The logs of an evaluation, first played first; none in the folder of a run."""
    if any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "trajectories")):
        return []
    logs = [path for path in folder.glob("*.jsonl") if path.with_suffix(".json").is_file()]
    return sorted(logs, key=lambda path: (path.with_suffix(".json").stat().st_mtime_ns, path.name))


def _check_folder(run: Path) -> None:
    if not run.is_dir():
        raise errors.ConfigError(f"no run folder {run}: give the folder that a trainer or `agentgym eval --out` wrote")
    expected = {
        "metrics.jsonl": _is_filled(run / "metrics.jsonl"),
        "config.yaml": _is_filled(run / "config.yaml"),
        "trajectories/*.jsonl": any((run / "trajectories").glob("*.jsonl")),
    }
    absent = [name for name, there in expected.items() if not there]
    if absent:
        raise errors.ConfigError(
            f"{run} is not a complete run folder: missing or empty: {', '.join(absent)}; "
            f"expected {', '.join(expected)}, as a trainer writes them, or POLICY.jsonl with POLICY.json, as "
            "`agentgym eval --out` does"
        )


def _config_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise errors.ConfigError(f"{path} is damaged: {error}") from error


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _sample(paths: list[Path], limit: int, by_group: bool) -> tuple[list[tuple[str, list[Trajectory]]], int]:
    """The trajectories to show by file stem, and how many the files hold in all.

    ``by_group`` takes the first groups of each file rather than the first lines, so that the same ones meet.
    """
    counts = [max(0, len(path.read_bytes().splitlines()) - 1) for path in paths]
    shares = [0] * len(paths)
    left = limit
    for done, index in enumerate(sorted(range(len(paths)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(paths) - done))
        left -= shares[index]
    files = []
    for path, share in zip(paths, shares, strict=True):
        found = iter(sorted(store.iter_read(path), key=lambda t: t.group)) if by_group else store.iter_read(path)
        files.append((path.stem, list(itertools.islice(found, max(1, share)))[:share]))  # 1: checks the file
    return files, sum(counts)


def _page(
    index: dict[str, Any], details: list[dict[str, Any]], replays: list[dict[str, Any]], images: dict[str, str]
) -> bytes:
    package = resources.files("agentgym")
    names = (*_SCRIPTS, *_STYLES, *(_GAMES if "games" in index else ()))
    texts = {name: (package / name).read_text(encoding="utf-8") for name in names}
    script, css = ("\n".join(texts[name] for name in names if name.endswith(end)) for end in (".js", ".css"))
    data = [_data("index", index), *(_data(f"t{number}", detail) for number, detail in enumerate(details))]
    data += [_data(f"g{number}", game) for number, game in enumerate(replays)]
    data += [_data(f"p{name}", {"url": url}) for name, url in images.items()]
    parts = {
        "title": html.escape(index["name"]),
        "policy": f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(css)}",
        "css": css,
        "script": script,
        "data": "\n".join(data),
    }
    template = (package / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page).encode()  # half a pair is no text


def _data(name: str, value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c")  # neither </script> nor <!-- can end the data
    return f'<script type="application/json" id="{name}">{escaped}</script>'


def _hash(text: str) -> str:
    """The source expression that lets exactly this inline script or style run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
