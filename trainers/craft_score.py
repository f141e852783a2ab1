"""From what the environment says of each reply to the reward of an episode, and what is logged of it.

After a step, ``info`` has ``type_correct`` (T, 0 or 1) and ``argument_score`` (A, 0 to 1), perhaps ``action_type``, the
type of the gold action; GUI-R1's reward reads ``gui_r1_accuracy`` instead. Where the environment asked a question, it
has ``reference`` and ``answer``, and ``question`` if that is not the whole observation. ``format_ok`` is false where it
could not read what the codec let through. The policy sees none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from agentgym.trainers.craft_judge import Item, RunJudge
from agentgym.trainers.craft_rewards import (
    WEIGHTS,
    episode_reward,
    gui_r1_reward,
    operation_reward,
    understanding_reward,
)

from agentgym.errors import ConfigError
from agentgym.types import Trajectory, Turn

KEPT = (
    *("episode_steps", "format_ok", "type_correct", "argument_score", "action_type", "gui_r1_accuracy"),
    *("question", "reference", "answer"),
)
"""What is read from ``info``."""
_NEEDED = {"hybrid": ("type_correct", "argument_score"), "gui_r1": ("gui_r1_accuracy",), "coarse": ()}


@dataclass
class Craft:
    """The reward.

    Attributes:
        reward: hybrid (the equations above), coarse (the environment's reward alone), or gui_r1.
        format_weight: w_f.
        type_weight: w_t.
        argument_weight: w_a; the three add up to 1.
        binary_args: Round A to 0 or 1 at 0.5.
        outcome_weight: w_o.
        judge: Who judges answers to questions: exact, f1, or openai:MODEL@URL; None where nothing is asked.
        judge_window: Answers that may get one and the same grade below 1 in a row before the run stops; 0 for no end.
        judge_jobs: Requests to the judge at a time.
        calibration: JSONL of hand-labelled answers that the judge must agree with before the run, or None.
        stage_episodes: Episodes of each stage to evaluate on where a phase begins and at the end; 0 for none.
    """

    reward: Literal["hybrid", "coarse", "gui_r1"] = "hybrid"
    format_weight: float = WEIGHTS[0]
    type_weight: float = WEIGHTS[1]
    argument_weight: float = WEIGHTS[2]
    binary_args: bool = False
    outcome_weight: float = 0.0
    judge: str | None = None
    judge_window: int = 64
    judge_jobs: int = 8
    calibration: str | None = None
    stage_episodes: int = 0

    def __post_init__(self) -> None:
        names = ("format_weight", "type_weight", "argument_weight")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-9:
            given = ", ".join(f"craft.{n} {w:g}" for n, w in zip(names, self.weights, strict=True))
            raise ConfigError(f"{given}: each must be 0 or more, and they must add up to 1")
        if not 0 <= self.outcome_weight <= 1:
            raise ConfigError(f"craft.outcome_weight is {self.outcome_weight}: it must be between 0 and 1")
        for name, least in (("judge_window", 0), ("judge_jobs", 1), ("stage_episodes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"craft.{name} is {getattr(self, name)}: it must be at least {least}")
        if self.calibration is not None and self.judge is None:
            raise ConfigError("craft.calibration has labels for a judge, but craft.judge is not set")

    @property
    def weights(self) -> tuple[float, float, float]:
        """w_f, w_t, w_a."""
        return self.format_weight, self.type_weight, self.argument_weight


@dataclass(frozen=True)
class Score:
    """What a reply was worth.

    Attributes:
        valid: F.
        right_type: T, or None for an answer to a question, and where it is not known.
        argument: A.
        judged: J of an answer to a question, else None.
        reward: R.
    """

    valid: bool
    right_type: bool | None
    argument: float
    judged: float | None
    reward: float


def open_judge(craft: Craft, file: Path) -> RunJudge | None:
    """The judge of a run, once it has agreed with ``craft.calibration``; its grades are kept in a file."""
    if craft.judge is None:
        return None
    judge = RunJudge(craft.judge, file, craft.judge_jobs)
    if craft.calibration is not None:
        judge.calibrate(craft.calibration)
    return judge


def is_question(turn: Turn) -> bool:
    """Whether the environment asked something about the screen, and could read the reply."""
    return turn.action is not None and "reference" in turn.info


def question_of(turn: Turn) -> Item:
    """Question, reference and answer, for the judge."""
    info = turn.info
    return str(info.get("question", turn.observation)), str(info["reference"]), str(info.get("answer", ""))


def score_turn(craft: Craft, turn: Turn, grade: float | None = None) -> Score:
    """F, T, A, J and R of a reply.

    Args:
        craft: Settings.
        turn: What was replied, and the environment's scalars.
        grade: J, if it answers a question.
    """
    info = turn.info
    valid = turn.action is not None and bool(info.get("format_ok", True))
    argument = float(info.get("argument_score", 0.0))
    argument = float(argument >= 0.5) if craft.binary_args else argument
    if craft.reward == "hybrid" and is_question(turn):
        judged = grade or 0.0
        reward = understanding_reward(valid, judged, craft.format_weight)
        return Score(valid, None, argument, judged, reward)
    right_type = bool(info["type_correct"]) if "type_correct" in info else None
    if craft.reward == "gui_r1":
        reward = gui_r1_reward(valid, bool(info.get("gui_r1_accuracy", 0)))
    else:
        reward = operation_reward(valid, bool(right_type), argument, craft.weights)
    return Score(valid, right_type, argument, None, reward)


def score(
    craft: Craft, trajectories: Sequence[Trajectory], judge: RunJudge | None
) -> tuple[list[list[Score]], list[float | None]]:
    """Score every reply of every trajectory.

    Returns:
        A list a trajectory, and the grades of the judge, None where it said nothing that is one.

    Raises:
        ConfigError: The environment did not say what the reward is made of.
        JudgeError: The judge did not answer.
    """
    asked = [turn for t in trajectories for turn in t.turns if is_question(turn) and turn.info.get("answer")]
    for turn in (turn for t in trajectories for turn in t.turns if turn.action is not None):
        check_step(craft, turn.info, trajectories[0].env_id)
    grades = judge.grades([question_of(turn) for turn in asked]) if judge and craft.reward == "hybrid" else []
    given = dict(zip(map(id, asked), grades, strict=False))
    return [[score_turn(craft, turn, given.get(id(turn))) for turn in t.turns] for t in trajectories], grades


def reward_of(craft: Craft, trajectory: Trajectory, scores: Sequence[Score]) -> float:
    """R_i of a trajectory."""
    if craft.reward == "coarse":
        return trajectory.episode_return
    return episode_reward([s.reward for s in scores], trajectory.episode_return, craft.outcome_weight)


def check_step(craft: Craft, info: Mapping[str, Any], env_id: str) -> None:
    """Refuse an environment whose ``info`` after a step lacks what the reward is made of.

    Raises:
        ConfigError: If it does, or asks a question and there is no judge.
    """
    if "reference" in info and craft.reward == "hybrid":
        if craft.judge is None:
            raise ConfigError(f"{env_id} asks questions about the screen: say who judges the answers (craft.judge)")
        return
    lacking = [name for name in _NEEDED[craft.reward] if name not in info]
    if lacking:
        raise ConfigError(
            f"{env_id} does not say how right an action was: its info has no {' and no '.join(lacking)} after a step; "
            "craft.reward=coarse takes the environment's own reward"
        )


def stage_metrics(
    trajectories: Sequence[Trajectory], scores: Sequence[Sequence[Score]], rewards: np.ndarray, stages: np.ndarray
) -> dict[str, float]:
    """Means over the episodes of each stage, and over the replies whose gold action is of each type.

    Args:
        trajectories: N episodes.
        scores: Of their replies.
        rewards: R_i ``[N]``.
        stages: Stage of each episode ``[N]``.
    """
    out = {"craft/reward": float(rewards.mean()), "craft/stage": float(stages.mean())}
    for stage in np.unique(stages).tolist():
        mine = np.flatnonzero(stages == stage)
        replies = [s for i in mine for s in scores[i]]
        known = [trajectories[i].success for i in mine if trajectories[i].success is not None]
        found: dict[str, list[float]] = {
            "reward": rewards[mine].tolist(),
            "success": [float(bool(success)) for success in known],
            "format": [float(s.valid) for s in replies],
            "type": [float(s.right_type) for s in replies if s.right_type is not None],
            "argument": [s.argument for s in replies if s.right_type],
            "judge": [s.judged for s in replies if s.judged is not None],
        }
        out |= {f"craft/stage_{stage}/{name}": float(np.mean(v)) for name, v in found.items() if v}
        out[f"craft/stage_{stage}/episodes"] = float(len(mine))
    right: dict[str, list[float]] = {}
    for trajectory, row in zip(trajectories, scores, strict=True):
        for turn, s in zip(trajectory.turns, row, strict=True):
            if "action_type" in turn.info:
                right.setdefault(str(turn.info["action_type"]), []).append(s.argument if s.right_type else 0.0)
    return out | {f"craft/right/{kind}": float(np.mean(v)) for kind, v in sorted(right.items())}
