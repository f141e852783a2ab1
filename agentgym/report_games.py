"""The games of self-play in a report: which trajectories belong together, and what happened in their game."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agentgym import errors
from agentgym.types import Trajectory

_REPLAYS = {"werewolf_v0": "agentgym.envs.werewolf_replay"}
"""Environment -> the module whose ``replay`` makes plain data of a game."""

Heard = Callable[[int, int, int, str], int | None]
"""Role, seat, number of seats and text of a speech -> its latent strategy, None if that is not known."""


def read_games(
    run: Path, config: str, files: Sequence[str], file_of: Sequence[int], trajectories: Sequence[Trajectory]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The games that the trajectories of a page come from.

    Args:
        run: The run folder; latent strategies are taken from its ``iteration_N/latents``.
        config: Text of its configuration; ``game`` holds the settings of the environment.
        files: Stems of the files of trajectories.
        file_of: The file of each trajectory.
        trajectories: Those of the page.

    Returns:
        What the page lists, ``list`` (``id``, ``file``, ``winner``, ``players``, ``rounds``) and ``skipped`` (``id``,
        ``file``, ``why``), None without games; and each game as a module of `_REPLAYS` gives it, every player with
        ``trajectory``, its place in the page or None.
    """
    seats: dict[tuple[int, str], list[int]] = {}
    for number, (file, trajectory) in enumerate(zip(file_of, trajectories, strict=True)):
        if trajectory.env_id in _REPLAYS and "game" in trajectory.info:
            seats.setdefault((file, str(trajectory.info["game"])), []).append(number)
    if not seats:
        return None, []
    heard = {file: _heard(run, files[file]) for file in {file for file, _ in seats}}
    settings = _settings(config)
    listed, skipped, details = [], [], []
    for (file, game), numbers in seats.items():
        found = [trajectories[number] for number in numbers]
        try:
            detail = importlib.import_module(_REPLAYS[found[0].env_id]).replay(found, heard[file], settings)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            skipped.append({"id": game, "file": file, "why": why})
            continue
        place = {str(trajectories[number].info["agent"]): number for number in numbers}
        for player in detail["players"]:
            player["trajectory"] = place.get(player["agent"])
        facts = {"winner": detail["winner"], "players": len(detail["players"]), "rounds": detail["rounds"]}
        listed.append({"id": game, "file": file, **facts})
        details.append(detail)
    return {"list": listed, "skipped": skipped}, details


def _settings(config: str) -> dict[str, Any] | None:
    try:
        values = yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    game = values.get("game") if isinstance(values, dict) else None
    return game if isinstance(game, dict) else None


class _Name:
    """Stands for an encoder: speeches that were clustered are looked up, not encoded."""

    def __init__(self, name: str):
        self.name = name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def _heard(run: Path, file: str) -> Heard | None:
    """Looks up the latent strategy of a speech among those that were clustered in the iteration of a file."""
    match = re.fullmatch(r"step_0*(\d+)", file)
    folder = run / f"iteration_{match[1]}" / "latents" if match else None
    if folder is None or not (folder / "latents.json").is_file():
        return None
    from agentgym import latents, latents_file

    try:
        encoder = str(json.loads((folder / "latents.json").read_bytes())["encoder"])
        found = latents_file.load(folder, _Name(encoder))
    except (errors.ConfigError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # strategies are shown where they are known
    labels = [dict(zip(role.texts, role.labels.tolist(), strict=True)) for role in found.roles]

    def look_up(role: int, seat: int, n: int, text: str) -> int | None:
        return labels[role].get(latents.relative(text, seat, n)) if role < len(labels) else None

    return look_up
