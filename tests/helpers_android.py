"""A small AndroidControl: synthetic screens of the smallest useful size, and a way to write records with mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentgym.envs import android_control_wire as wire

SMALL: dict[str, int] = {"episodes": 36, "width": 135, "height": 240}


def example(number: int = 1, actions: list[Any] | None = None, **changed: Any) -> bytes:
    """An episode with an empty picture and tree for each screen."""
    actions = [{"action_type": "wait"}] if actions is None else actions
    screens = len(actions) + 1
    features = {
        "episode_id": [number],
        "goal": [b"Wait."],
        "screenshots": [b"png"] * screens,
        "accessibility_trees": [b""] * screens,
        "screenshot_widths": [100] * screens,
        "screenshot_heights": [200] * screens,
        "actions": [json.dumps(action).encode() for action in actions],
        "step_instructions": [b"Wait"] * len(actions),
    }
    return wire.write_example(features | changed)


def folder_of(path: Path, records: list[bytes], ids: list[int]) -> Path:
    """A folder of data with these records, and these ids in the split test."""
    path.mkdir(parents=True, exist_ok=True)
    wire.write_records(path / "android_control-00000-of-00001", records)
    (path / "splits.json").write_text(json.dumps({"train": [], "validation": [], "test": ids}))
    return path
