"""A transformers model decoded in process, over the trainer's own module: there are no weights to synchronise.

Continuous batching across live episodes; the keys and values of an episode stay cached between its turns; a prompt
that members of a group share is computed once and copied. With ``deterministic`` the engine computes only when
every live episode waits for it, so that batches, and with them the last bits of every log-probability, do not
depend on how fast an environment answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from agentgym.errors import ContextFull, EngineError
from agentgym.learner.attention import hidden_states, logits_at
from agentgym.learner.logprobs import score
from agentgym.learner.places import keys_of
from agentgym.policies.base import Generation, Request, check_request
from agentgym.policies.engine import Engine
from agentgym.policies.eyes import Eyes, View, positions_in
from agentgym.policies.kv_cache import KVCache, Step, common_prefix
from agentgym.policies.probe import Probe
from agentgym.policies.sampling import sample
from agentgym.renderer import Renderer

_MIN_SHARED = 8


@dataclass
class _Job:
    """A turn that is being written.

    Attributes:
        ids: What stands in the row so far.
        keys: The same with images told apart; without images the same list.
        view: The images in it.
    """

    request: Request
    future: asyncio.Future[Generation]
    ids: list[int]
    keys: list[int]
    view: View
    new: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    score: float | None = None

    @property
    def probe(self) -> Probe | None:
        """What is to be scored in the next forward."""
        return self.request.probe if not self.new else None

    @property
    def behind(self) -> tuple[int, ...]:
        """What is read behind the prompt in the next forward: of a probe all but its last token."""
        return self.probe.ids[:-1] if self.probe else ()


class HFSession:
    """One slot of the cache, for one episode at a time.

    Attributes:
        live: Whether a deterministic engine waits for it. One that is parked keeps what it has cached.
    """

    def __init__(self, policy: HFPolicy, slot: int):
        self.policy = policy
        self.slot = slot
        self.key: tuple[int, ...] = (slot,)
        self.group = ""
        self.job: _Job | None = None
        self._live = True

    @property
    def live(self) -> bool:
        """Whether it is waited for."""
        return self._live

    @live.setter
    def live(self, live: bool) -> None:
        self._live = live
        self.policy.engine.wake()

    def begin(self, key: tuple[int, ...], group: str) -> None:
        """Start an episode in an empty slot."""
        self.key, self.group = key, group
        self.policy.cache.tokens[self.slot] = []

    async def generate(self, request: Request) -> Generation:
        """Write one turn together with whatever else is live."""
        return await self.policy.submit(self, request)

    def close(self) -> None:
        """Free the slot."""
        self.policy.release(self)


class HFPolicy:
    """The policy protocol over a transformers causal LM.

    Attributes:
        model: The module, shared with the learner.
        version: Version of its weights; `weights_changed` raises it.
        engine: What computes its turns.
        eyes: What it has seen.
        stats: Counts of prefilled, re-used and sampled tokens, of forwards and of probes, since the start.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        name: str = "hf",
        deterministic: bool = True,
        prefill_budget: int = 8192,
        reuse: bool = True,
    ):
        """Decode with ``model``, prepared by ``learner.model.prepare``.

        Args:
            model: The module.
            renderer: Renderer of the model's tokenizer.
            name: Recorded in trajectories.
            deterministic: Wait for every live episode before each forward.
            prefill_budget: Most prompt tokens in one forward.
            reuse: Keep keys and values between turns; off only to measure what that is worth.
        """
        self.model, self.renderer, self.name = model, renderer, name
        self.deterministic, self.prefill_budget, self.reuse = deterministic, prefill_budget, reuse
        self.version = 0
        self.env_options: dict[str, Any] = {}
        parameter = next(model.parameters())
        self.device = parameter.device
        config = model.config.get_text_config()
        self.cache = KVCache(config, parameter.dtype, parameter.device)
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.context_limit: int | None = int(config.max_position_embeddings)
        self.stats = {"prefilled": 0, "reused": 0, "sampled": 0, "forwards": 0, "probed": 0}
        self.eyes = Eyes(model)
        self._sessions: dict[int, HFSession] = {}
        self.engine = Engine([self])

    def open(self) -> HFSession:
        """Open a slot."""
        slot = next(i for i in range(len(self._sessions) + 1) if i not in self._sessions)
        self.cache.reserve(slot + 1, 1)
        session = self._sessions[slot] = HFSession(self, slot)
        return session

    def release(self, session: HFSession) -> None:
        """Close a slot; a turn that is still being written there fails."""
        if self._sessions.get(session.slot) is not session:
            return
        del self._sessions[session.slot]
        self.cache.tokens[session.slot] = []
        if session.job is not None and not session.job.future.done():
            session.job.future.set_exception(EngineError("the session was closed while it wrote"))
        self.engine.wake()

    async def submit(self, session: HFSession, request: Request) -> Generation:
        """Queue a turn and wait until it is written."""
        self._check(session, request)
        behind = max(request.max_new_tokens, len(request.probe.ids) if request.probe else 0)
        if self.context_limit is not None and len(request.ids) + behind > self.context_limit:
            raise ContextFull(
                f"{len(request.ids)} prompt tokens and {behind} new ones exceed the model's "
                f"{self.context_limit} positions"
            )
        loop = asyncio.get_running_loop()
        ids, view = list(request.ids), View(len(request.ids), request.images, request.pictures)
        session.job = job = _Job(request, loop.create_future(), ids, keys_of(ids, request.images), view)
        self.engine.start()
        try:
            return await job.future
        finally:
            if session.job is job:
                session.job = None

    def _check(self, session: HFSession, request: Request) -> None:
        """Refuse what would break the turns of others, or wait for ever."""
        if self._sessions.get(session.slot) is not session:
            raise EngineError("the session is closed")
        if session.job is not None and not session.job.future.done():
            raise EngineError("the session writes another turn")
        check_request(request, self.vocab_size)
        if request.images and not self.renderer.sees:
            raise EngineError("the prompt holds images, but the model reads text only")

    async def score(self, ids: list[int], start: int) -> list[float]:
        """Log-probabilities (temperature 1) of ``ids[start:]``, each given all ids before it.

        Raises:
            EngineError: If ``start`` is 0 (nothing predicts the first token) or the forward failed.
        """
        if not 0 < start <= len(ids):
            raise EngineError(f"{len(ids)} tokens cannot be scored from position {start}: choose 1 to {len(ids)}")
        try:
            return score(self.model, ids, start)
        except Exception as error:
            raise EngineError(f"scoring failed: {error!r}") from error

    def load_weights(self, state: Mapping[str, Any], version: int) -> None:
        """Copy a state dict into the module.

        Raises:
            EngineError: If it does not fit.
        """
        self.cache.clear()
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise EngineError(f"the weights of version {version} do not fit the model: {reason}") from error
        self.weights_changed(version)

    def weights_changed(self, version: int) -> None:
        """Drop the cache after the module's weights were changed in place."""
        self.version = version
        self.cache.clear()
        self.eyes.clear()

    @property
    def open_sessions(self) -> int:
        """Sessions that are not closed."""
        return len(self._sessions)

    @property
    def missing(self) -> bool:
        """Whether a live session has no turn to write."""
        return any(session.live and session.job is None for session in self._sessions.values())

    def advance(self) -> bool:
        """Compute one forward of the turns that wait; whether there were any."""
        jobs = sorted((s for s in self._sessions.values() if s.job), key=lambda s: s.key)
        if not jobs:
            return False
        try:
            self._forward(jobs)
        except Exception as error:
            for session in jobs:
                self.cache.scrub(session.slot)
                if session.job and not session.job.future.done():
                    session.job.future.set_exception(EngineError(f"decoding failed: {error!r}"))
                session.job = None
        return True

    def _plan(self, jobs: list[HFSession]) -> tuple[list[HFSession], list[tuple[HFSession, int]]]:
        """Split the jobs into single-token rows and runs ``(session, first missing position)``."""
        singles: list[HFSession] = []
        runs: list[tuple[HFSession, int]] = []
        budget = self.prefill_budget
        for session in jobs:
            assert session.job is not None
            ids = session.job.keys
            have = self.cache.tokens[session.slot]
            if not session.job.new:
                known = common_prefix(have, ids[:-1]) if self.reuse else 0
                self.cache.tokens[session.slot] = have = have[:known]
                donor, length = self._donor(session, ids) if self.reuse and not known else (session, 0)
                if length >= _MIN_SHARED:
                    if len(self.cache.tokens[donor.slot]) < length:
                        continue
                    self.cache.copy_prefix(donor.slot, session.slot, length)
                    have = self.cache.tokens[session.slot]
            missing = len(ids) - len(have) + len(session.job.behind)
            if missing == 1:
                singles.append(session)
            elif not runs or missing <= budget:
                runs.append((session, len(have)))
                budget -= missing
        return singles, runs

    def _donor(self, session: HFSession, ids: list[int]) -> tuple[HFSession, int]:
        """The session whose tokens (cached, or next in line) share most with ``ids``: of the same group, as a rule."""
        best, length = session, 0
        for other in sorted(self._sessions.values(), key=lambda s: s.key):
            if other is session:
                continue
            theirs = self.cache.tokens[other.slot]
            if other.job and not other.job.new and other.key < session.key:
                theirs = other.job.keys
            shared = common_prefix(theirs, ids[:-1])
            if shared > length:
                best, length = other, shared
        return best, length

    @torch.inference_mode()
    def _forward(self, jobs: list[HFSession]) -> None:
        """Write one token of every planned job."""
        singles, runs = self._plan(jobs)
        rows = [*singles, *(s for s, _ in runs)]
        self.cache.reserve(
            max(s.slot for s in rows) + 1,
            max(len(s.job.ids) + max(s.job.request.max_new_tokens, len(s.job.behind)) for s in rows if s.job),
        )
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        spans: list[tuple[int, int]] = []
        probed: list[tuple[_Job, Probe, int]] = []
        for session, start in [*((s, -1) for s in singles), *runs]:
            assert session.job is not None
            first = start if start >= 0 else len(session.job.ids) - 1
            new, behind = session.job.ids[first:], session.job.behind
            length = len(new) + len(behind)
            spans.append((len(ids), length))
            last.append(len(ids) + len(new) - 1)
            if session.job.probe:
                probed.append((session.job, session.job.probe, last[-1]))
            ids += [*new, *behind]
            slots += [session.slot] * length
            positions += range(first, first + length)
            held = self.cache.tokens[session.slot]
            held += session.job.keys[first:]  # what was read behind the prompt is written over
            if not session.job.new:
                self.stats["prefilled"] += len(new)
                self.stats["reused"] += first
        step = self._step(slots, positions, len(singles), spans[len(singles) :])
        parts = [(s.job.view, positions[at], n) for s, (at, n) in zip(rows, spans, strict=True) if s.job]
        where = positions_in(parts)
        hidden = hidden_states(
            self.model,
            torch.tensor(ids, device=self.device),
            step.positions if where is None else torch.from_numpy(where).to(self.device),
            step,
            self.eyes.look(parts),
        )
        logits = logits_at(self.model, hidden[torch.tensor(last, device=self.device)])
        if probed:
            self._score_probes(hidden, probed)
        self.stats["forwards"] += 1
        self.stats["sampled"] += len(rows)
        tokens, logps = sample(logits, [s.job.request for s in rows if s.job])
        for session, token, logp in zip(rows, tokens, logps, strict=True):
            self._append(session, token, logp)

    def _score_probes(self, hidden: torch.Tensor, probed: list[tuple[_Job, Probe, int]]) -> None:
        """Score the answers of probes; each stands behind its prompt, whose last token is named."""
        at = [i for _, probe, end in probed for i in range(end + probe.start, end + len(probe.ids))]
        targets = torch.tensor([i for _, probe, _ in probed for i in probe.answer], device=self.device)
        heat = [job.request.temperature or 1.0 for job, probe, _ in probed for _ in probe.answer]
        logits = logits_at(self.model, hidden[torch.tensor(at, device=self.device)])
        logp = (logits / torch.tensor(heat, device=self.device)[:, None]).log_softmax(-1)
        scores = logp.gather(1, targets[:, None])[:, 0].double().cpu()
        for (job, _, _), each in zip(probed, scores.split([len(p.answer) for _, p, _ in probed]), strict=True):
            job.score = float(each.mean())
        self.stats["probed"] += len(probed)

    def _step(self, slots: list[int], positions: list[int], singles: int, spans: list[tuple[int, int]]) -> Step:
        longest = max((n for _, n in spans), default=0)
        index = np.array([[a + min(j, n - 1) for j in range(longest)] for a, n in spans], dtype=np.int64)
        valid = np.array([[j < n for j in range(longest)] for _, n in spans], dtype=bool)
        return Step(
            self.cache,
            torch.tensor(slots, device=self.device),
            torch.tensor(positions, device=self.device),
            singles,
            torch.from_numpy(index).to(self.device),
            torch.from_numpy(valid).to(self.device),
        )

    def _append(self, session: HFSession, token: int, logp: float) -> None:
        job = session.job
        assert job is not None
        job.new.append(token)
        job.logps.append(logp)
        job.ids.append(token)
        if job.keys is not job.ids:
            job.keys.append(token)
        stopped = token == self.renderer.close_id
        if stopped or len(job.new) >= job.request.max_new_tokens:
            if not job.future.done():
                finish: Literal["stop", "length"] = "stop" if stopped else "length"
                job.future.set_result(Generation(job.new, job.logps, self.version, finish, probe=job.score))
            session.job = None
