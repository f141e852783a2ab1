"""The table of environments: one line an id, read by ``gym.make``, the CLI and the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym


@dataclass(frozen=True)
class EnvEntry:
    """What the registry knows of an environment without importing its engine.

    Attributes:
        id: Gymnasium id.
        entry_point: ``module:Class``.
        summary: One line for ``agentgym envs``.
        extra: The pip extra that installs the engine, or None.
        needs: System parts beside Python packages, such as ``java``.
        kwargs: Default keyword arguments of the class for this id.
        variants: Arguments of ``gym.make`` that the tests check and that have a golden transcript each; where time is
            short, the first stands for all.
        codec: How a model's text becomes an action where ``rollout.codec`` is ``auto``: a key of
            `agentgym.actions.CODECS`.
        skips: Checks of `agentgym check` that say nothing about it, each with the reason.
    """

    id: str
    entry_point: str
    summary: str
    extra: str | None = None
    needs: tuple[str, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    variants: tuple[dict[str, Any], ...] = ({},)
    codec: str = "plain"
    skips: dict[str, str] = field(default_factory=dict)


ENVIRONMENTS: tuple[EnvEntry, ...] = (
    EnvEntry(
        "agentgym/TextWorld-Coin-v0",
        "agentgym.envs.textworld:TextWorldEnv",
        "TextWorld: walk to the coin and take it; difficulty by level",
        extra="textworld",
        kwargs={"challenge": "coin"},
        variants=({"n_games": 2},),
    ),
    EnvEntry(
        "agentgym/TextWorld-Treasure-v0",
        "agentgym.envs.textworld:TextWorldEnv",
        "TextWorld: find the right object behind doors and containers; difficulty by level",
        extra="textworld",
        kwargs={"challenge": "treasure"},
        variants=({"n_games": 2},),
    ),
    EnvEntry(
        "agentgym/TextWorld-Cooking-v0",
        "agentgym.envs.textworld:TextWorldEnv",
        "TextWorld: gather, prepare and cook the ingredients of a recipe",
        extra="textworld",
        kwargs={"challenge": "cooking"},
        variants=({"n_games": 2},),
    ),
    EnvEntry(
        "agentgym/TextWorldExpress-v0",
        "agentgym.envs.textworld_express:TextWorldExpressEnv",
        "TextWorldExpress: eight fast text games, chosen by the argument game",
        extra="textworld-express",
        needs=("java",),
        variants=tuple(
            {"game": game}
            for game in (
                "coin",
                "mapreader",
                "twc",
                "cookingworld",
                "arithmetic",
                "sorting",
                "simonsays",
                "peckingorder",
            )
        ),
    ),
    EnvEntry(
        "agentgym/ScienceWorld-v0",
        "agentgym.envs.scienceworld:ScienceWorldEnv",
        "ScienceWorld: thirty tasks of school science in a simulated house, chosen by task and variation",
        extra="scienceworld",
        needs=("java",),
        variants=tuple({"task": task} for task in ("find-non-living-thing", "lifespan-longest-lived", "boil")),
    ),
    EnvEntry(
        "agentgym/BabyAI-v0",
        "agentgym.envs.babyai:BabyAIEnv",
        "BabyAI: follow an instruction in a grid world told as text, chosen by the argument level",
        extra="babyai",
        variants=tuple({"level": level} for level in ("GoToLocal", "PickupLoc", "UnlockLocal", "BossLevel")),
    ),
    EnvEntry(
        "agentgym/ALFWorld-v0",
        "agentgym.envs.alfworld:ALFWorldEnv",
        "ALFWorld: household tasks of six kinds in text, chosen by split and task_types; games are fetched once",
        extra="alfworld",
        variants=({}, {"split": "dev"}, {"split": "test"}),
    ),
    EnvEntry(
        "agentgym/VirtualHome-Food-v0",
        "agentgym.envs.virtualhome:VirtualHomeFoodEnv",
        "VirtualHome: put a thing into an appliance and close it; the nouns by the argument variant",
        variants=({}, {"variant": "clothes"}, {"variant": None}),
    ),
    EnvEntry(
        "agentgym/VirtualHome-Entertainment-v0",
        "agentgym.envs.virtualhome:VirtualHomeEntertainmentEnv",
        "VirtualHome: sit on the sofa with chips and milk while the TV is on",
    ),
    EnvEntry(
        "agentgym/Overcooked-v0",
        "agentgym.envs.overcooked:OvercookedEnv",
        "Overcooked: one cook, macro-actions told in words; the dish by the argument task",
        variants=({}, {"task": "tomato-lettuce-salad"}),
    ),
    EnvEntry(
        "agentgym/WerewolfSeat-v0",
        "agentgym.envs.werewolf_seat:WerewolfSeatEnv",
        "Werewolf: one seat of the game of hidden roles, against scripted players; the role by the argument role",
        extra="marl",
        variants=({"players": 4, "brief": True}, {}),
        codec="verbatim",
        skips={"expert": "the expert knows no more than a seat may know, so it loses games"},
    ),
    EnvEntry(
        "agentgym/PythonMath-v0",
        "agentgym.envs.python_math:PythonMathEnv",
        "PythonMath: problems that need computing, solved with a Python tool in a sandbox",
        needs=("sandbox",),
        codec="tools",
    ),
    EnvEntry(
        "agentgym/Shell-v0",
        "agentgym.envs.shell:ShellEnv",
        "Shell: file and text tasks in a sandbox, checked by what the agent never saw; chosen by the argument task",
        needs=("sandbox",),
        variants=({}, {"task": "permissions"}, {"task": "mend_program"}),
        codec="tools",
    ),
    EnvEntry(
        "agentgym/SearchQA-v0",
        "agentgym.envs.search_qa:SearchQAEnv",
        "SearchQA: questions of several hops, answered by searching a local index, a server or the web",
        extra="corpus",
        variants=(
            {"corpus": "tiny"},
            {"corpus": "tiny", "hops": 3},
            {"corpus": "tiny", "hops": 2, "think": "optional", "brief": True, "results": 2, "split": "test"},
        ),
        codec="verbatim",
    ),
    EnvEntry(
        "agentgym/DeepResearch-v0",
        "agentgym.envs.deep_research:DeepResearchEnv",
        "DeepResearch: questions answered over many rounds by searching, reading pages and running Python",
        extra="corpus",
        variants=({"corpus": "tiny"}, {"corpus": "tiny", "brief": True, "hops": 3, "results": 2, "judge": "f1"}),
        codec="report",
    ),
    EnvEntry(
        "agentgym/AndroidControl-v0",
        "agentgym.envs.android_control:AndroidControlEnv",
        "AndroidControl: the next action of recorded phone use, from a screenshot or its elements in words",
        extra="gui",
        variants=(
            {},
            {"instruction": "low", "history": "actions", "evaluator": "os_atlas"},
            {"instruction": "low_alone", "split": "test", "evaluator": "agentcpm"},
        ),
        codec="gui",
    ),
    EnvEntry(
        "agentgym/DataScience-v0",
        "agentgym.envs.data_science:DataScienceEnv",
        "DataScience: write the Python that fits a scikit-learn classifier, scored by ROC-AUC in a sandbox",
        extra="datascience",
        needs=("sandbox",),
        variants=({"dataset": "iris"}, {"dataset": "breast_cancer"}),
        codec="code",
    ),
    EnvEntry(
        "agentgym/MiniWoB-v0",
        "agentgym.envs.miniwob:MiniWoBEnv",
        "MiniWoB++: small web tasks in a real Chromium, seen as text or as a screenshot; chosen by the argument task",
        extra="gui",
        needs=("chromium",),
        variants=tuple(
            {"task": task} for task in ("click-checkboxes", "login-user", "email-inbox", "social-media-some")
        ),
        codec="verbatim",
    ),
)


def entry_of(env_id: str) -> EnvEntry | None:
    """The line of an environment; None for one that is not in the table."""
    name = env_id.rpartition(":")[2]
    return next((entry for entry in ENVIRONMENTS if entry.id == name), None)


def codec_of(env_id: str) -> str:
    """The action codec that fits an environment; ``plain`` for one that is not in the table."""
    entry = entry_of(env_id)
    return entry.codec if entry else "plain"


def register_envs() -> None:
    """Register every environment with Gymnasium; calling it again changes nothing."""
    for entry in ENVIRONMENTS:
        if entry.id not in gym.registry:
            gym.register(entry.id, entry_point=entry.entry_point, kwargs=entry.kwargs, disable_env_checker=True)
