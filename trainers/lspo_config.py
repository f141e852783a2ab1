"""Settings of an LSPO run (`agentgym.trainers.lspo`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_rules import ROLES
from agentgym.trainers.lspo_pairs import PairRule, Prefer
from agentgym.trainers.lspo_play import Mode

from agentgym.config import build, overlay
from agentgym.deep_cfr import DeepCFRConfig
from agentgym.errors import ConfigError, unknown
from agentgym.learner.learner import OptimConfig
from agentgym.learner.setup import ModelConfig
from agentgym.policies.decode import DecodeConfig
from agentgym.rollout import RolloutConfig


@dataclass
class Lspo:
    """The algorithm; the defaults are the paper's where it names them.

    Attributes:
        iterations: I.
        games: Games of self-play an iteration.
        candidates: N.
        prompted: Ask for candidates that differ (for a pretrained model), instead of sampling them independently.
        latents: k_ρ(1) of Werewolf, Seer, Doctor, Villager.
        public_codes: Codes as which all hear what others say; more make the abstract game tell more.
        arguments: Whether a latent strategy also says whom it accuses or clears, see `agentgym.latents`.
        encoder: e, see `agentgym.embeddings.make_encoder`.
        cfr_iterations: Iterations of Deep CFR.
        prefer: ``high_advantage``, or ``low_regret`` for the paper's sentence.
        pairs: ``extremes``: one pair a speech; ``all``: every two candidates of different strategies.
        min_gap: Pairs whose regrets differ by less are left out.
        beta: β.
        nll_weight: Of the chosen answer's negative log-likelihood per token, beside DPO's loss; 0 in the paper.
        epochs: Passes over the pairs.
        batch: Pairs of an optimizer step.
    """

    iterations: int = 3
    games: int = 1000
    candidates: int = 3
    prompted: bool = False
    latents: tuple[int, ...] = (3, 2, 2, 2)
    public_codes: int = 8
    arguments: bool = False
    encoder: str = "minilm"
    cfr_iterations: int = 20
    prefer: Prefer = "high_advantage"
    pairs: PairRule = "extremes"
    min_gap: float = 1e-6
    beta: float = 0.1
    nll_weight: float = 0.0
    epochs: int = 2
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("iterations", "games", "public_codes", "cfr_iterations", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lspo.{name} is {getattr(self, name)}: it must be at least 1")
        if self.candidates < 2:
            raise ConfigError(f"lspo.candidates is {self.candidates}: it must be at least 2, or nothing is compared")
        if len(self.latents) != len(ROLES) or min(self.latents) < 1:
            raise ConfigError(f"lspo.latents must be four numbers of at least 1 ({', '.join(ROLES)})")
        if self.nll_weight < 0:
            raise ConfigError(f"lspo.nll_weight is {self.nll_weight}: it must be 0 or more")
        if self.beta <= 0 or self.min_gap < 0:
            raise ConfigError(f"lspo.beta ({self.beta}) must be above 0, lspo.min_gap ({self.min_gap}) 0 or more")


@dataclass
class Measure:
    """Evaluation after every iteration, the model on either side of the table.

    Attributes:
        games: Games a side; 0 for none.
        opponent: Who has the other side: a key of `agentgym.envs.werewolf_players.PLAYERS`.
        mode: How it plays, see `lspo_play`; before the first iteration as the model alone.
        seed: Chooses the deals; the same for every iteration.
        predictions: Ask it before every vote which role each other player has, and measure how often it is right.
    """

    games: int = 100
    opponent: str = "scripted"
    mode: Mode = "hybrid"
    seed: int = 12345
    predictions: bool = False

    def __post_init__(self) -> None:
        if self.games < 0:
            raise ConfigError(f"measure.games is {self.games}: it must be 0 or more")
        if self.opponent not in PLAYERS:
            raise unknown("measure.opponent", self.opponent, PLAYERS)


@dataclass
class Config:
    """Settings of an LSPO run.

    Attributes:
        game: Arguments of `agentgym.envs.werewolf.raw_env`.
        model: π_0.
        rollout: How games are played; ``rollout.concurrency`` games at a time.
        decode: The engine that writes the turns.
        context: What a seat sees: append (with ``game.history: new``), or window:1 (with ``all``).
        optim: The optimizer of DPO.
        lspo: The algorithm.
        cfr: Deep CFR.
        measure: Evaluation.
        stop_after: Stop after this phase of the first iteration that is not finished; resume goes on.
        seed: Seed of everything.
    """

    game: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    context: str = "append"
    optim: OptimConfig = field(default_factory=OptimConfig)
    lspo: Lspo = field(default_factory=Lspo)
    cfr: DeepCFRConfig = field(default_factory=DeepCFRConfig)
    measure: Measure = field(default_factory=Measure)
    stop_after: Literal["", "collect", "cluster", "solve", "prefer", "tune", "measure"] = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rollout.top_p < 1 or self.rollout.temperature == 0:
            raise ConfigError(
                "candidates are sampled from the whole distribution: rollout.top_p=1, temperature above 0"
            )
        if self.decode.staleness:
            raise ConfigError(
                "decode.staleness must be 0: an iteration of LSPO tunes on the games of the one before it"
            )
        for name in ("text", "latents", "codebook"):
            if name in self.game:
                raise ConfigError(f"game.{name} is LSPO's to set: leave it out")
        try:
            env = raw_env(**self.game)
        except TypeError as error:
            raise ConfigError(f"game: {error}") from error
        if self.context == "append" and env.history != "new":
            raise ConfigError("context=append shows every turn again: set game.history=new, or context=window:1")


def make_config(values: Mapping[str, Any]) -> Config:
    """Build the config.

    Raises:
        ConfigError: For an unknown key, or settings that exclude each other.
    """
    cfr = {"depth": 2, "scale": 300.0}
    return build(Config, overlay({"cfr": cfr, "game": {"history": "new"}, "rollout": {"max_turns": 60}}, values))
