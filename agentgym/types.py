"""The contract file: what a trajectory is, from the sampled token to the group.

Token ids are stored once, as the policy saw and produced them, and are never re-tokenised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypedDict

from agentgym import pictures
from agentgym.pictures import Picture


class Message(TypedDict):
    """A chat message in OpenAI format; images in its text are markers (`agentgym.pictures`)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Status(StrEnum):
    """How an episode ended."""

    DONE = "done"
    TRUNCATED = "truncated"
    CONTEXT_FULL = "context_full"
    PARSE_LIMIT = "parse_limit"
    ENV_ERROR = "env_error"
    SANDBOX_ERROR = "sandbox_error"
    ENGINE_ERROR = "engine_error"
    TIMEOUT = "timeout"

    @property
    def failed(self) -> bool:
        """Whether something outside the policy broke, so that the episode says nothing about it."""
        return self in (Status.ENV_ERROR, Status.SANDBOX_ERROR, Status.ENGINE_ERROR, Status.TIMEOUT)


@dataclass
class Edit:
    """Why a segment begins as a fork: history was rewritten, by the chat template or by the context.

    Attributes:
        turn: The turn whose prompt no longer extends the previous segment.
        kept: Tokens of the previous segment that the new one starts with.
        dropped: Tokens of the previous segment that the new one does not hold.
        before: The text that was dropped (first 400 characters).
        after: The text that stands in its place (first 400 characters).
    """

    turn: int
    kept: int
    dropped: int
    before: str
    after: str


@dataclass
class ImageSpan:
    """Neighbouring placeholders of an image in a row of tokens.

    Attributes:
        hash: The image, a key of ``Trajectory.pictures``.
        start: First placeholder.
        stop: One past the last one.
        first: Number of the first one among all placeholders of the image, which may stand in several spans.
        columns: Columns of their grid, for models whose positions are two-dimensional there; else 0.
    """

    hash: str
    start: int
    stop: int
    first: int = 0
    columns: int = 0


@dataclass
class Segment:
    """A row of tokens that only ever grew at its end; all lists have the same length.

    Attributes:
        ids: Token ids as the policy saw and produced them.
        mask: 1 where the policy sampled the token in this segment, else 0. A token that a fork repeats is 0.
        logps: Behaviour log-probability of sampled tokens, else 0.
        versions: Policy version that sampled the token, -1 elsewhere.
        edit: None for the first segment, else why this one was forked.
        advantages: Per-token advantages (0 where the mask is 0), once a trainer has computed them.
        old_logps: Log-probabilities by the trainer's model before the update, where they take the place of ``logps``.
        weights: Per-token importance weights that belong to them.
        images: Where images stand in it, in order. A placeholder's id alone does not say so: a policy may sample it.
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    edit: Edit | None = None
    advantages: list[float] | None = None
    old_logps: list[float] | None = None
    weights: list[float] | None = None
    images: list[ImageSpan] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def append_context(self, ids: list[int], images: Sequence[ImageSpan] = ()) -> None:
        """Append tokens that the policy reads but did not write; ``images`` are counted from the first of them."""
        at = len(self.ids)
        self.images += [replace(image, start=at + image.start, stop=at + image.stop) for image in images]
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logps += [0.0] * len(ids)
        self.versions += [-1] * len(ids)

    def append_sampled(self, ids: list[int], logps: list[float], version: int | list[int]) -> None:
        """Append tokens that the policy sampled, with their log-probabilities and the version of all or of each."""
        self.ids += ids
        self.mask += [1] * len(ids)
        self.logps += logps
        self.versions += version if isinstance(version, list) else [version] * len(ids)


@dataclass
class Candidate:
    """An action that a policy could have taken: of a restricted choice, or of several that it wrote.

    Attributes:
        ids: Its tokens, the closing one included.
        words: Words of its text.
        logp: Log-probability of its tokens, all of them together, when the choice was made.
    """

    ids: list[int]
    words: int
    logp: float


@dataclass
class ToolUse:
    """A call of a tool that an environment made for the policy.

    Attributes:
        name: Name of the tool.
        arguments: Its arguments as JSON.
        output: What it said.
        status: ``error`` if it could not be made, else that of the sandbox's result: ok, timeout, output_limit, ...
        exit_code: Exit code of what ran, None if nothing did or it was ended.
        seconds: How long it took.
    """

    name: str
    arguments: str
    output: str
    status: str = "ok"
    exit_code: int | None = None
    seconds: float = 0.0


@dataclass
class Turn:
    """One exchange: the observation the policy read, the tokens it sampled, what came of them.

    Attributes:
        observation: The text shown before this action (what anchors compare), behind the marker of its image.
        segment: Index of the segment that holds the sampled tokens.
        prompt_start: First token of this segment that was appended for this turn.
        start: First sampled token.
        stop: One past the last sampled token.
        text: The sampled tokens decoded, without the stop token.
        action: What the environment got, or None after a parse error.
        parse_error: What was wrong with the text, or None.
        reward: Reward of this turn.
        finish: ``stop`` if the policy ended its message, ``length`` if it was cut.
        policy_s: Seconds spent in the policy.
        env_s: Seconds spent in the environment.
        candidates: What a policy with a restricted choice chose from, in the environment's order, or what it wrote to
            take one of; else empty.
        calls: The calls of tools that the environment made for this action.
        probe: Mean log-probability of the tokens of the gold answer before this turn, None if it was not probed.
        info: Scalars of the ``info`` that came back, those that the rollout was told to keep.
    """

    observation: str
    segment: int
    prompt_start: int
    start: int
    stop: int
    text: str
    action: str | None
    parse_error: str | None = None
    reward: float = 0.0
    finish: Literal["stop", "length"] = "stop"
    policy_s: float = 0.0
    env_s: float = 0.0
    candidates: list[Candidate] = field(default_factory=list)
    calls: list[ToolUse] = field(default_factory=list)
    probe: float | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trajectory:
    """One episode of one policy.

    Attributes:
        env_id: Gymnasium id.
        env_seed: Seed given to ``env.reset``; the members of a group share it.
        group: Name of the group.
        member: Index in the group.
        sampling_seed: Seed of this member's sampling.
        policy: Name of the policy.
        messages: The conversation as text, system message first; every turn, whatever the context showed.
        segments: Token rows.
        turns: Turns in order; their spans point into the segments.
        status: How it ended, or None while it runs.
        success: What the environment says, or None if it has no notion of success.
        error: Error text of a failed episode.
        attempts: How many environments were used (1 = no retry).
        info: Scalars of the last ``info`` (score, max_score, ...).
        final_observation: What the environment said last.
        pictures: The images of its observations by hash.
    """

    env_id: str
    env_seed: int
    group: str = ""
    member: int = 0
    sampling_seed: int = 0
    policy: str = ""
    messages: list[Message] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    status: Status | None = None
    success: bool | None = None
    error: str | None = None
    attempts: int = 1
    info: dict[str, Any] = field(default_factory=dict)
    final_observation: str = ""
    pictures: dict[str, Picture] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def action_tokens(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(sum(segment.mask) for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only, for JSON; ``from_dict`` is its inverse."""
        shallow = replace(self, pictures={})
        return {**dataclasses.asdict(shallow), "pictures": pictures.to_text(self.pictures)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trajectory:
        """Rebuild a trajectory from ``to_dict``."""
        data = dict(data)
        data["pictures"] = pictures.from_text(data.get("pictures") or {})
        data["segments"] = [
            Segment(
                **{
                    **s,
                    "edit": Edit(**s["edit"]) if s["edit"] else None,
                    "images": [ImageSpan(**i) for i in s.get("images") or ()],
                }
            )
            for s in data["segments"]
        ]
        data["turns"] = [
            Turn(
                **{
                    **t,
                    "candidates": [Candidate(**c) for c in t.get("candidates", ())],
                    "calls": [ToolUse(**c) for c in t.get("calls", ())],
                }
            )
            for t in data["turns"]
        ]
        data["status"] = Status(data["status"]) if data["status"] else None
        return cls(**data)


@dataclass
class Group:
    """Trajectories of one task instance: same environment seed, different sampling seeds."""

    id: str
    env_seed: int
    trajectories: list[Trajectory] = field(default_factory=list)
