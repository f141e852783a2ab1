"""One policy's side of an episode: what it was shown and what it wrote, as messages and as exact tokens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentgym import seeding
from agentgym.actions import ActionCodec
from agentgym.context import Context
from agentgym.errors import ConfigError
from agentgym.pictures import Sight, seen
from agentgym.policies.base import Policy, Request, Session
from agentgym.policies.probe import Probe
from agentgym.renderer import Row
from agentgym.types import Message, Trajectory, Turn


@dataclass(frozen=True)
class Limits:
    """How turns are sampled.

    Attributes:
        max_new_tokens: Tokens a turn may have, the closing one included.
        context_limit: Tokens of prompt and answer together.
        temperature: Sampling temperature.
        top_p: Nucleus.
    """

    max_new_tokens: int
    context_limit: int
    temperature: float
    top_p: float


@dataclass
class Dialogue:
    """Turns of one policy, written into a trajectory.

    Attributes:
        policy: Who writes.
        codec: How its text becomes an action.
        context: What it sees.
        limits: How turns are sampled.
        trajectory: Where everything is recorded.
        instructions: What it is told before the first observation.
        tools: JSON schemas of the environment's tools.
        probe: What to score before every turn.
        usage: What an endpoint counted.
    """

    policy: Policy
    codec: ActionCodec
    context: Context
    limits: Limits
    trajectory: Trajectory
    instructions: str
    tools: Sequence[Mapping[str, Any]] = ()
    probe: Probe | None = None
    usage: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        renderer, has_model = self.policy.renderer, self.policy.context_limit is not None
        self.kept = max(self.limits.max_new_tokens, len(self.probe.ids) if self.probe else 0)
        self._row = Row(renderer, self.limits.context_limit - self.kept if has_model else None)
        self.trajectory.segments = self._row.segments
        told = f"{self.instructions}\n{self.codec.instructions}".rstrip()
        self.trajectory.messages.append(Message(role="system", content=renderer.escape(told)))

    def prompt(self, observation: str | Sight, admissible: Sequence[str]) -> None:
        """Show an observation.

        Raises:
            ContextFull: If the prompt is too long; the trajectory is as it was.
            ConfigError: If it has an image and the policy is a model that reads text only.
        """
        messages, marker = self.trajectory.messages, ""
        text = observation.text if isinstance(observation, Sight) else observation
        if isinstance(observation, Sight):
            self._check_sees()
            marker = observation.ref.marker
            self.trajectory.pictures[observation.picture.hash] = observation.picture
        shown = self.codec.show(text, admissible)
        self._shown = marker + shown
        messages.append(Message(role="user", content=marker + self.policy.renderer.escape(shown)))
        self._view = self.context.view(messages)
        try:
            self._prompt_start = self._row.prompt(self._view, len(self.trajectory.turns))
        except BaseException:
            messages.pop()
            raise

    def _check_sees(self) -> None:
        if self.policy.context_limit is not None and not self.policy.renderer.sees:
            raise ConfigError(
                f"{self.trajectory.env_id} shows images, but the model of {self.policy.name} reads text only: use a "
                "vision-language model as model.path, or let the environment describe its screen "
                "(env.kwargs.observation=text)"
            )

    async def write(self, session: Session, info: Mapping[str, Any], admissible: Sequence[str]) -> Turn:
        """Let the policy answer what it was shown, and record the turn.

        Raises:
            EngineError: If the policy failed.
        """
        row, messages, renderer = self._row, self.trajectory.messages, self.policy.renderer
        started = time.perf_counter()
        request = Request(
            ids=list(row.segment.ids),
            max_new_tokens=self.limits.max_new_tokens,
            rng=seeding.turn_rng(self.trajectory.sampling_seed, len(self.trajectory.turns)),
            temperature=self.limits.temperature,
            top_p=self.limits.top_p,
            info=info,
            encode_action=lambda action: renderer.encode_reply(self.codec.write(action, admissible)),
            messages=self._view,
            tools=self.tools if self.context.offers_tools(messages) else (),
            probe=self.probe,
            images=list(row.segment.images),
            pictures=self.trajectory.pictures,
        )
        generation = await session.generate(request)
        self.usage.update(generation.usage)
        start, stop = row.sampled(generation.ids, generation.logps, generation.version)
        text = renderer.decode_reply(generation.ids)
        parsed = self.codec.parse(text, admissible)
        turn = Turn(
            observation=self._shown,
            segment=len(row.segments) - 1,
            prompt_start=self._prompt_start,
            start=start,
            stop=stop,
            text=text,
            action=parsed.action,
            parse_error=parsed.error,
            finish=generation.finish,
            candidates=list(generation.candidates),
            probe=generation.probe,
            policy_s=time.perf_counter() - started,
        )
        self.trajectory.turns.append(turn)
        messages.append(Message(role="assistant", content=text))
        return turn

    def end(self, info: Mapping[str, Any], observation: str | Sight) -> None:
        """Record what the environment said last."""
        trajectory = self.trajectory
        trajectory.final_observation = seen(observation)
        if isinstance(observation, Sight):
            trajectory.pictures[observation.picture.hash] = observation.picture
        trajectory.success = None if info.get("success") is None else bool(info["success"])
        scalars = {k: v for k, v in info.items() if isinstance(v, bool | int | float | str)}
        scalars.pop("expert_action", None)
        trajectory.info = {**scalars, **self.usage, **trajectory.info}
