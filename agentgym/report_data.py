"""What the report page is given: run files read, checked and made small enough to embed as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from agentgym import errors, store
from agentgym.evaluate import compare, sampled_tokens, summarise
from agentgym.renderer import ByteTokenizer, holds_bytes
from agentgym.report_pictures import drawn, parts
from agentgym.types import Segment, Trajectory, Turn

_CONFIG_FACTS = {"preset": "", "model": "path", "env": "id", "seed": ""}
_MEASURES = ("success", "return", "turns", "tokens")
_TIMES = ("time/rollout", "time/score", "time/update", "time/sync")
_MOST_POINTS = 1000
_MOST_MESSAGES = 5
_ATTEMPTS = "rollout/error/"
_PARSE_ERROR = "parse_error"

Curve = dict[float, float]


def read_metrics(run_dir: str | os.PathLike[str]) -> dict[str, Curve]:
    """Read ``metrics.jsonl`` as one curve per metric.

    A step that occurs twice (a resumed run) keeps its last value; a last line cut by a kill is ignored.

    Args:
        run_dir: The run folder.

    Returns:
        Metric name to ``{step: value}``, both in the order of the file, without values that are not numbers.

    Raises:
        ConfigError: The file is missing, empty or damaged.
    """
    path = Path(run_dir) / "metrics.jsonl"
    hint = "expected one JSON object a line, with a step and numbers such as reward/mean"
    if not path.is_file():
        raise errors.ConfigError(f"no {path}: {hint}")
    curves: dict[str, Curve] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
            step = float(row["step"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):
                break
            raise errors.ConfigError(f"{path}, line {number}: {type(error).__name__}: {error}: {hint}") from None
        for name, value in row.items():
            if (
                name != "step"
                and isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
            ):
                curves.setdefault(name, {})[step] = float(value)
    if not curves:
        raise errors.ConfigError(f"{path} holds no metric: {hint}")
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def facts(config: str, curves: dict[str, Curve], shown: list[Trajectory], total: int) -> list[list[str]]:
    """Label and value of the facts under the title, from the config, the metrics and the trajectories."""
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError:
        values = None
    values = values if isinstance(values, dict) else {}
    found = []
    for key, inner in _CONFIG_FACTS.items():
        value = values.get(key)
        value = value.get(inner) if isinstance(value, dict) else value
        if isinstance(value, str | int | float) and value != "":
            found.append([key, str(value)])
    if "env" not in dict(found):
        found.append(["env", ", ".join(sorted({t.env_id for t in shown}))])
    if curves:
        found.append(["last step", f"{max(step for curve in curves.values() for step in curve):,.0f}"])
    part = f" ({len(shown):,} in this page)" if len(shown) < total else ""
    found.append(["trajectories", f"{total:,}{part}"])
    failed = sum(t.status is not None and t.status.failed for t in shown)
    if failed:
        found.append(["failed episodes", f"{failed:,}"])
    seconds = sum(sum(curves.get(name, {}).values()) for name in _TIMES)
    if 0 < seconds < math.inf:
        found.append(["time", _duration(seconds)])
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def evaluation(path: Path) -> list[dict[str, Any]] | None:
    """Read ``evaluation.json``: one entry a measure, with ``[mean, low, high]`` or None before and after.

    Raises:
        ConfigError: The file is not of this form. It may be absent.
    """
    if not path.is_file():
        return None
    measures = []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name in _MEASURES:
            sides = {side: _interval(found.get(side, {}).get(name)) for side in ("before", "after")}
            if any(sides.values()):
                measures.append({"name": name, **sides})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise errors.ConfigError(
            f"{path}: {type(error).__name__}: {error}: expected before and after, "
            'each with success, return, turns and tokens as {"mean": 0.5, "ci95": [0.4, 0.6]}'
        ) from None
    return measures or None


def evaluation_settings(logs: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """What is known of an evaluation: its settings as YAML, and the results of its policies for the page.

    Each policy is compared with the first one. Of an episode that was repeated after a failure the last attempt counts.

    Raises:
        ConfigError: A log or the settings beside it are damaged.
    """
    settings: dict[str, dict[str, Any]] = {}
    policies: list[dict[str, Any]] = []
    baseline: list[Trajectory] = []
    for log in logs:
        file = log.with_suffix(".json")
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            name, seed = str(found["policy"]), int(found["seed"])
        except (ValueError, TypeError, KeyError) as error:
            raise errors.ConfigError(
                f"{file}: {type(error).__name__}: {error}: expected what `agentgym eval` keeps beside a log"
            ) from None
        settings[log.stem] = found
        played = list({t.group: t for t in store.iter_read(log)}.values())
        row = {"file": log.stem, **summarise(name, seed, played).to_dict()}
        if policies:
            row["versus"] = compare(policies[0]["policy"], baseline, played).to_dict()
        else:
            baseline = played
        policies.append(row)
    shared = {k: v for k, v in settings[logs[0].stem].items() if all(s.get(k) == v for s in settings.values())}
    apart = {name: {k: v for k, v in s.items() if k not in shared} for name, s in settings.items()}
    text = yaml.safe_dump({**shared, "policies": apart}, sort_keys=False, allow_unicode=True)
    return text, {"policies": policies}


def errors_by_kind(shown: Iterable[Trajectory], curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """What went wrong, by kind: failed episodes by status, turns that could not be parsed, and failed attempts.

    Returns:
        One entry a kind: ``kind``, ``count`` in the trajectories of the page, ``messages`` as pairs of text and count
        (most frequent first), and ``attempts``, what the metrics of a run counted, which stores no failed episode.
    """
    messages: dict[str, Counter[str]] = {}
    for trajectory in shown:
        if trajectory.status and trajectory.status.failed:
            messages.setdefault(trajectory.status.value, Counter())[trajectory.error or "no message"] += 1
        for turn in trajectory.turns:
            if turn.parse_error is not None:
                messages.setdefault(_PARSE_ERROR, Counter())[turn.parse_error] += 1
    attempts = {n.removeprefix(_ATTEMPTS): sum(c.values()) for n, c in curves.items() if n.startswith(_ATTEMPTS)}
    return [
        {
            "kind": kind,
            "count": messages.get(kind, Counter()).total(),
            "messages": messages.get(kind, Counter()).most_common(_MOST_MESSAGES),
            "attempts": attempts.get(kind, 0),
        }
        for kind in sorted({*messages, *attempts}, key=lambda kind: (kind == _PARSE_ERROR, kind))
    ]


def _interval(value: dict[str, Any] | None) -> list[Any] | None:
    if value is None:
        return None
    low, high = value.get("ci95") or (None, None)
    return [_short(value["mean"]), _short(low), _short(high)]


def curve(name: str, curves: dict[str, Curve]) -> dict[str, Any]:
    """One metric for drawing: ``x``, ``y``, and ``lo`` and ``hi`` where an interval was logged."""
    points = [(step, value) for step, value in curves[name].items() if math.isfinite(value)]
    points = _thin(points, _MOST_POINTS)
    drawn: dict[str, Any] = {
        "name": name,
        "x": [_short(step, 10) for step, _ in points],
        "y": [_short(value) for _, value in points],
    }
    for side in ("lo", "hi"):
        bound = curves.get(f"{name}_{side}")
        if bound:
            drawn[side] = [_short(bound.get(step)) for step, _ in points]
    return drawn


def _thin(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """About ``most`` points that keep every peak: the lowest and the highest of each stretch."""
    size = math.ceil(2 * len(points) / most)
    if size <= 2:
        return points
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def columns(trajectories: list[Trajectory], files: list[int]) -> dict[str, list[Any]]:
    """What the list, the filters and the group view need of every trajectory, as columns."""
    return {
        "file": files,
        "group": [t.group for t in trajectories],
        "member": [t.member for t in trajectories],
        "status": [t.status or "running" for t in trajectories],
        "success": [t.success for t in trajectories],
        "return": [_short(t.episode_return, 6) for t in trajectories],
        "turns": [len(t.turns) for t in trajectories],
        "tokens": [sampled_tokens(t) for t in trajectories],
        "parse_errors": [sum(turn.parse_error is not None for turn in t.turns) for t in trajectories],
    }


def detail(trajectory: Trajectory, systems: dict[str, int]) -> dict[str, Any]:
    """Everything about one trajectory.

    Args:
        trajectory: What to show.
        systems: System prompts of the page and their numbers; a new prompt is added, so each is stored once.

    Returns:
        JSON values; NaN and infinities are None, or text in ``info``.
    """
    first = trajectory.messages[0] if trajectory.messages else None
    system = first["content"] if first and first["role"] == "system" else None
    last = trajectory.messages[-1] if trajectory.messages else None
    segments, turns, texts = trajectory.segments, trajectory.turns, None
    if holds_bytes(trajectory):
        segments, turns, texts = _as_text(trajectory)
    previous: list[Segment | None] = [None, *segments]
    return {
        "env": trajectory.env_id,
        "seeds": [str(trajectory.env_seed), str(trajectory.sampling_seed)],
        "policy": trajectory.policy,
        "system": None if system is None else systems.setdefault(system, len(systems)),
        "attempts": trajectory.attempts,
        "error": trajectory.error,
        "info": _finite(trajectory.info),
        "unanswered": parts(last["content"], trajectory) if last and last["role"] == "user" else None,
        "final": parts(trajectory.final_observation, trajectory),
        "turns": [{**_turn(t, segments), "observation": parts(t.observation, trajectory)} for t in turns],
        "segments": [_segment(s, p) for s, p in zip(segments, previous, strict=False)],
        "texts": texts,
    }


def _as_text(trajectory: Trajectory) -> tuple[list[Segment], list[Turn], list[list[str]]]:
    """Byte rows with one piece of text for each stretch that was read or written, in place of a token a byte."""
    tokenizer, segments, texts = ByteTokenizer(), [], []
    turns = list(trajectory.turns)
    for number, segment in enumerate(trajectory.segments):
        mine = [i for i, turn in enumerate(turns) if turn.segment == number]
        ends = {0, len(segment)} | ({segment.edit.kept} if segment.edit else set())
        ends |= {at for i in mine for at in (turns[i].prompt_start, turns[i].start, turns[i].stop)}
        cuts = sorted(ends)
        place = {at: k for k, at in enumerate(cuts)}
        firsts = cuts[:-1]
        texts.append([tokenizer.decode(segment.ids[a:b]) for a, b in itertools.pairwise(cuts)])
        edit = segment.edit and dataclasses.replace(segment.edit, kept=place[segment.edit.kept])
        coarse = Segment(firsts, edit=edit)
        coarse.mask, coarse.logps = [segment.mask[at] for at in firsts], [segment.logps[at] for at in firsts]
        coarse.versions = [segment.versions[at] for at in firsts]
        segments.append(coarse)
        for i in mine:
            turn = turns[i]
            start, stop = place[turn.start], place[turn.stop]
            turns[i] = dataclasses.replace(turn, prompt_start=place[turn.prompt_start], start=start, stop=stop)
    return segments, turns, texts


def _turn(turn: Turn, segments: Sequence[Segment]) -> dict[str, Any]:
    """A turn with the mean advantage of its tokens, None where none was stored."""
    numbers = {name: _short(getattr(turn, name), 6) for name in ("reward", "policy_s", "env_s", "probe")}
    advantages = segments[turn.segment].advantages if turn.segment < len(segments) else None
    own = advantages[turn.start : turn.stop] if advantages else []
    shown: dict[str, Any] = {name: value for name, value in vars(turn).items() if name != "candidates"}
    shown["info"] = _finite(turn.info)
    shown["drawn"] = drawn(turn.action, turn.info)
    shown["calls"] = [
        {**vars(call), "arguments": _arguments(call.arguments), "seconds": _short(call.seconds, 6)}
        for call in turn.calls
    ]
    return {**shown, **numbers, "advantage": _short(sum(own) / len(own)) if own else None}


def _arguments(text: str) -> dict[str, str]:
    """The arguments of a call by name, as text."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return {"arguments": text}
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in values.items()}


def _segment(segment: Segment, previous: Segment | None) -> dict[str, Any]:
    """A row of tokens: without what it shares with the row before, and values only where the mask is 1."""
    edit = segment.edit
    kept = edit.kept if edit and previous and previous.ids[: edit.kept] == segment.ids[: edit.kept] else 0

    def sampled(values: Sequence[float]) -> list[Any]:
        return [_short(value) for value in itertools.compress(values, segment.mask)]

    return {
        "kept": kept,
        "ids": segment.ids[kept:],
        "mask": _pack(segment.mask),
        "logps": sampled(segment.logps),
        "versions": _pack(sampled(segment.versions)),
        "advantages": None if segment.advantages is None else _pack(sampled(segment.advantages)),
        "edit": edit and vars(edit),
    }


def _pack(values: list[Any]) -> list[Any] | dict[str, list[Any]]:
    """A list as it is, or as runs ``{"runs": [value, count, ...]}`` if that is shorter."""
    runs = [x for value, same in itertools.groupby(values) for x in (value, len(list(same)))]
    return {"runs": runs} if len(runs) < len(values) else values


def token_pieces(path: Path, shown: list[Trajectory]) -> dict[str, str] | None:
    """Read ``tokens.json``: the text of the token ids that occur, by id; None without the file.

    Raises:
        ConfigError: The file is not a JSON list.
    """
    if not path.is_file():
        return None
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        pieces = None
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise errors.ConfigError(f"{path}: expected a JSON list of strings, one per token id")
    used = sorted({token for t in shown for segment in t.segments for token in segment.ids})
    return {str(token): pieces[token] for token in used if token < len(pieces)}


def _short(value: Any, digits: int = 4) -> Any:
    """A number in few digits, None if it is not finite; a display value, not a stored one."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _finite(value: Any) -> Any:
    """The same value with NaN and infinities as text, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
