"""CRAFT-GUI in real episodes: what is rewarded, the gradient by hand, refusals, and runs that resume bit by bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import helpers_craft  # noqa: F401 (registers test/Clicks-v0)
import helpers_envs  # noqa: F401 (registers test/Echo-v0)
import numpy as np
import pytest
import torch
from agentgym.trainers import craft_gui, grpo, sft
from agentgym.trainers.craft_score import KEPT, check_step, score
from helpers_policies import tiny_policy
from helpers_runs import assert_same_run, rows, run_until_killed
from transformers import LlamaForCausalLM

from agentgym import cli, store
from agentgym.config import load, overlay
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError
from agentgym.learner import checkpoint
from agentgym.learner.learner import Learner
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks

TEMPERATURE = 0.8

# ---- settings -------------------------------------------------------------------------------------------------


def test_the_presets():
    offline, online, coarse, gui_r1 = (
        craft_gui.make_config({"preset": name}) for name in ("craft_gui", "craft_online", "coarse", "gui_r1")
    )
    assert offline.craft.weights == (0.1, 0.3, 0.6)
    assert (offline.craft.reward, offline.craft.outcome_weight, online.craft.outcome_weight) == ("hybrid", 0.0, 0.5)
    assert (offline.curriculum.boundaries, offline.curriculum.order) == ((3, 8), "easy_to_hard")
    assert (offline.curriculum.replay_frac, offline.curriculum.promote_above) == (0.2, None)
    assert coarse.craft.reward == "coarse"
    assert coarse.curriculum == offline.curriculum
    assert (gui_r1.craft.reward, gui_r1.curriculum.boundaries) == ("gui_r1", ())
    assert (offline.group_size, offline.algo.kl_coef, offline.algo.clip_low) == (5, 0.01, 0.2)
    assert (offline.optim.lr, offline.optim.weight_decay, offline.optim.grad_clip) == (1e-6, 0.01, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "grpo"}, "unknown preset 'grpo': choose from: coarse, craft_gui, craft_online, gui_r1"),
        ({"algo": {"resample": True}}, "algo.resample works on the environment's reward"),
        ({"algo": {"overlong_length": 9, "overlong_buffer": 3}}, "algo.overlong_length works on"),
        ({"craft": {"format_weight": 0.2}}, "craft.format_weight 0.2, .* must add up to 1"),
        ({"craft": {"format_weight": -0.1, "argument_weight": 0.8}}, "each must be 0 or more"),
        ({"craft": {"outcome_weight": 1.5}}, "craft.outcome_weight is 1.5"),
        ({"craft": {"judge_window": -1}}, "craft.judge_window is -1"),
        ({"craft": {"judge_jobs": 0}}, "craft.judge_jobs is 0"),
        ({"craft": {"calibration": "labels.jsonl"}}, "craft.judge is not set"),
        ({"craft": {"reward": "binary"}}, "unknown value of craft.reward 'binary'"),
        ({"curriculum": {"order": "random"}}, "unknown value of curriculum.order 'random'"),
        ({"curriculum": {"boundaries": [8, 3]}}, "curriculum.boundaries"),
        ({"steps": 2}, "steps is 2: too few for the 3 phases"),
        ({"craft": {"weight": 1}}, "unknown config key 'craft.weight'"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        craft_gui.make_config(values)


# ---- what is kept, and what it is worth -----------------------------------------------------------------------


def play(policy, kwargs=None, groups=2, size=2, steps=(1, 3), **settings):
    limits = {"max_turns": 12, "max_new_tokens": 6, "context_limit": 600, "parse_limit": 9}
    with EnvPool("test/Clicks-v0", kwargs) as pool:
        rollout = Rollout(pool, policy, RolloutConfig(**{**limits, **settings}), {"steps": list(steps)})
        rollout.keep = KEPT
        return rollout.collect(group_tasks(0, 0, groups, size))


def test_the_scalars_of_every_step_are_kept():
    groups = play(ExpertPolicy(noise=0.5), steps=(4, 8))
    for trajectory in (t for g in groups for t in g.trajectories):
        assert 4 <= trajectory.info["episode_steps"] == len(trajectory.turns) <= 8
        for turn in trajectory.turns:
            gold = turn.observation.removeprefix("Click ")
            assert turn.info["type_correct"] == (turn.action.split()[0] == gold.split()[0])
            assert turn.info["argument_score"] == (turn.action.split()[1] == gold.split()[1])
            assert turn.info["action_type"] == gold.split()[0]
            assert set(turn.info) <= set(KEPT)


def test_the_reward_of_an_episode_is_that_of_its_replies():
    cfg = craft_gui.make_config({"preset": "craft_online"})
    trajectories = [t for g in play(ExpertPolicy(noise=0.7), size=4) for t in g.trajectories]
    trajectories[0].turns[0].action, trajectories[0].turns[0].info = None, {}
    scores, grades = score(cfg.craft, trajectories, None)
    assert grades == []
    for i, (trajectory, row) in enumerate(zip(trajectories, scores, strict=True)):
        parts = []
        for k, turn in enumerate(trajectory.turns):
            button, colour = turn.observation.removeprefix("Click ").split()
            done = "" if (i, k) == (0, 0) else turn.action
            parts.append((0.1 + 0.3 * (button in done) + 0.6 * (button in done and colour in done)) if done else 0.0)
        assert [s.reward for s in row] == pytest.approx(parts)
        expected = 0.5 * sum(parts) / len(parts) + 0.5 * trajectory.episode_return
        assert craft_gui.reward_of(cfg.craft, trajectory, row) == pytest.approx(expected)
    assert len({round(s.reward, 6) for row in scores for s in row}) >= 3


def test_a_coarse_reward_needs_nothing_of_the_environment():
    cfg = craft_gui.make_config({"preset": "coarse"})
    kwargs = {"lacks": ("type_correct", "argument_score", "action_type")}
    trajectories = [t for g in play(ExpertPolicy(noise=0.5), kwargs, size=4) for t in g.trajectories]
    scores, _ = score(cfg.craft, trajectories, None)
    found = [craft_gui.reward_of(cfg.craft, t, s) for t, s in zip(trajectories, scores, strict=True)]
    assert found == [t.episode_return for t in trajectories]
    assert set(found) == {0.0, 1.0}


# ---- the gradient ---------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_formula():
    """Real episodes of a tiny model, with rewards that a hand computes too; one group has no spread."""
    policy = tiny_policy(3)
    groups = play(policy, groups=3, size=3, temperature=TEMPERATURE, context="window:1")
    stock = LlamaForCausalLM(copy.deepcopy(policy.model.config))
    stock.load_state_dict(policy.model.state_dict())
    stock.set_attn_implementation("sdpa")
    stock.eval()
    rng = np.random.default_rng(1)
    trajectories = [t for g in groups for t in g.trajectories]
    for i, trajectory in enumerate(trajectories):
        for turn in trajectory.turns:
            turn.action = turn.action or "something"
            parts = {"type_correct": int(rng.integers(2)), "argument_score": float(rng.choice([0, 0.5, 1]))}
            turn.info = parts if i >= 3 else {"type_correct": 1, "argument_score": 0.5}
        for segment in trajectory.segments:
            noise = rng.normal(0, 0.2, len(segment))
            segment.logps = [x + float(d) * m for x, d, m in zip(segment.logps, noise, segment.mask, strict=True)]
    cfg = craft_gui.make_config(
        {
            "groups": 3,
            "group_size": 3,
            "algo": {"kl_coef": 0.0},
            "optim": {"grad_clip": 1e9},
            "rollout": {"temperature": TEMPERATURE},
        }
    )
    scores, _ = score(cfg.craft, trajectories, None)
    rewards = np.array([craft_gui.reward_of(cfg.craft, t, s) for t, s in zip(trajectories, scores, strict=True)])
    learner, gradient = Learner(policy.model, cfg.optim), {}
    learner.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})
    metrics = craft_gui.update(cfg, learner, groups, rewards, grpo.make_loss(cfg.algo, None, TEMPERATURE))
    assert metrics["group/kept"] == 2

    expected = 0.0
    for members in (trajectories[3:6], trajectories[6:9]):
        by_hand = []
        for t in members:
            each = [0.1 + u.info["type_correct"] * (0.3 + 0.6 * u.info["argument_score"]) for u in t.turns]
            by_hand.append(sum(each) / len(each))
        mean = sum(by_hand) / 3
        std = (sum((r - mean) ** 2 for r in by_hand) / 2) ** 0.5
        assert std > 0
        for t, r in zip(members, by_hand, strict=True):
            a, n = (r - mean) / (std + 1e-6), sum(u.stop - u.start for u in t.turns)
            for turn in t.turns:
                segment = t.segments[turn.segment]
                ids = torch.tensor(segment.ids[: turn.stop])
                logps = (stock(input_ids=ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1)
                at = torch.arange(turn.start, turn.stop)
                ratio = (logps[at - 1, ids[at]] - torch.tensor(segment.logps[turn.start : turn.stop])).exp()
                expected = expected - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / (6 * n)
    expected.backward()
    assert metrics["optim/loss"] == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    norm = float(torch.stack([p.grad.norm() for p in stock.parameters()]).norm())
    assert norm > 0
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=2e-4, atol=2e-5 * norm)


def test_groups_without_spread_alone_make_no_update():
    policy = tiny_policy(3)
    groups = play(policy)
    cfg = craft_gui.make_config({"groups": 2, "group_size": 2, "algo": {"kl_coef": 0.01}})
    before = [p.clone() for p in policy.model.parameters()]
    learner = Learner(policy.model, cfg.optim)
    loss = grpo.make_loss(cfg.algo, policy.model, 1.0)
    metrics = craft_gui.update(cfg, learner, groups, np.full(4, 0.4), loss)
    assert metrics == {"group/kept": 0.0}
    assert learner.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert not any(any(s.advantages) for g in groups for t in g.trajectories for s in t.segments)


# ---- runs -----------------------------------------------------------------------------------------------------

COMMON = {
    "env": {"id": "test/Clicks-v0"},
    "model": {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 320, "threads": 1},
    "rollout": {"max_turns": 12, "max_new_tokens": 6, "context_limit": 600, "context": "window:0"},
    "eval": {"final_episodes": 2},
}
SHORT = {
    "steps": 5,
    "groups": 4,
    "group_size": 4,
    "minibatches": 2,
    "save_every": 1,
    "show_every": 1,
    "optim": {"lr": 1e-3, "warmup_steps": 3},
    "curriculum": {"stage_steps": [2, 2], "replay_frac": 0.3},
    "craft": {"outcome_weight": 0.3, "stage_episodes": 2},
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The folder of a model that has seen a few demonstrations."""
    out = tmp_path_factory.mktemp("warm") / "sft"
    values = {"demonstrations": 64, "noise": 0.3, "epochs": 6, "optim": {"lr": 3e-3}}
    sft.main(sft.make_config(overlay(COMMON, values)), out)
    return out / "final"


def config(warm, **values):
    base = overlay({**COMMON, "model": {"path": str(warm), "threads": 1}}, SHORT)
    return craft_gui.make_config(overlay(base, values))


@pytest.fixture(scope="module")
def straight(warm, tmp_path_factory):
    """Five steps without interruption."""
    out = tmp_path_factory.mktemp("straight") / "craft"
    craft_gui.main(config(warm), out)
    return out


def test_stages_follow_each_other(straight):
    lines = [row for row in rows(straight) if "reward/mean" in row]
    assert [row["craft/phase"] for row in lines] == [1, 1, 2, 2, 3]
    state = torch.load(checkpoint.latest(straight / "checkpoints") / "trainer_state.pt", weights_only=True)
    assert (state["trainer"]["phase"], state["trainer"]["since"]) == (2, 1)
    for step, (phase, row) in enumerate(zip((1, 1, 2, 2, 3), lines, strict=True), 1):
        bounds = {1: (1, 3), 2: (4, 8), 3: (9, 12)}
        met = {}
        for t in store.read(straight / "trajectories" / f"step_{step:05d}.jsonl"):
            (stage,) = (s for s, (low, high) in bounds.items() if low <= t.info["episode_steps"] <= high)
            assert stage <= phase
            met.setdefault(stage, []).append(t)
        assert met.keys() == {s for s in (1, 2, 3) if f"craft/stage_{s}/episodes" in row}
        assert len(met[phase]) >= 8
        replayed = 1 - len(met[phase]) / 16
        assert row["craft/replayed_frac"] == replayed
        assert replayed == 0 if phase == 1 else replayed in (0.25, 0.5)
        for stage, episodes in met.items():
            turns = [u for t in episodes for u in t.turns]
            assert row[f"craft/stage_{stage}/episodes"] == len(episodes)
            assert row[f"craft/stage_{stage}/success"] == pytest.approx(np.mean([t.success for t in episodes]))
            assert row[f"craft/stage_{stage}/format"] == pytest.approx(np.mean([u.action is not None for u in turns]))
            assert 0 < row[f"craft/stage_{stage}/reward"] <= 1
        right = {}
        for u in (u for ts in met.values() for t in ts for u in t.turns if u.info):
            right.setdefault(u.info["action_type"], []).append(u.info["type_correct"] * u.info["argument_score"])
        for kind, values in right.items():
            assert row[f"craft/right/{kind}"] == pytest.approx(np.mean(values), abs=1e-5)


def test_every_stage_is_evaluated_where_a_phase_begins_and_at_the_end(straight):
    found = json.loads((straight / "evaluation.json").read_text())
    expected = {f"stage_{stage}_step_{step:05d}" for stage in (1, 2, 3) for step in (0, 2, 4, 5)}
    assert set(found) == {"before", "after"} | expected
    for name in expected:
        low, high = {"1": (1, 3), "2": (4, 8), "3": (9, 12)}[name[6]]
        assert found[name]["episodes"] == 2
        assert low <= found[name]["turns"]["mean"] <= high + 2


def test_the_optimizer_begins_anew_with_a_phase_if_asked(warm, straight, tmp_path):
    values = {"steps": 3, "curriculum": {"stage_steps": [1, 1], "replay_frac": 0.0}, "craft": {"stage_episodes": 0}}
    for name, reset in (("reset", True), ("kept", False)):
        changed = overlay(values, {"curriculum": {"reset_optimizer": reset}})
        craft_gui.main(config(warm, **changed), tmp_path / name)
        state = torch.load(checkpoint.latest(tmp_path / name / "checkpoints") / "trainer_state.pt", weights_only=True)
        taken = {int(s["step"]) for s in state["optimizer"]["state"].values()}
        assert state["updates"] > 2
        assert taken == {state["updates"]} if not reset else max(taken) <= 2


def test_a_run_that_is_interrupted_where_a_phase_begins_goes_on_bit_by_bit(warm, straight, tmp_path, monkeypatch):
    out, collect = tmp_path / "run", craft_gui.collect

    def interrupt(cfg, rollout, curriculum, step):
        if step == 2:
            raise KeyboardInterrupt
        return collect(cfg, rollout, curriculum, step)

    monkeypatch.setattr(craft_gui, "collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        craft_gui.main(config(warm), out)
    monkeypatch.setattr(craft_gui, "collect", collect)
    craft_gui.main(config(warm), out, resume=True)
    assert_same_run(straight, out)


def test_a_run_that_is_killed_in_the_middle_goes_on_bit_by_bit(warm, straight, tmp_path):
    out = tmp_path / "run"
    run_until_killed("craft_gui", config(warm), out, step=3)
    craft_gui.main(config(warm), out, resume=True)
    assert_same_run(straight, out)


@pytest.mark.parametrize("values", [{"preset": "coarse"}, {"preset": "gui_r1"}, {"curriculum": {"order": "mixed"}}])
def test_other_rewards_and_orders_run(warm, tmp_path, values):
    common = {"steps": 1, "craft": {"stage_episodes": 0}, "curriculum": {"boundaries": [], "stage_steps": []}}
    if "curriculum" in values:
        common["curriculum"]["boundaries"] = [3, 8]
    craft_gui.main(config(warm, **overlay(common, values)), tmp_path / "run")
    (row,) = (row for row in rows(tmp_path / "run") if "reward/mean" in row)
    assert row["craft/phase"] == 1
    assert row["craft/replayed_frac"] == 0
    if values == {"preset": "coarse"}:
        assert row["craft/reward"] == row["reward/mean"]
    else:
        assert row["group/kept"] > 0


# ---- refused before any rollout -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["env.id=test/Echo-v0"],
            "test/Echo-v0 does not say how long a gold solution is: its info holds no episode_steps",
        ),
        (
            ["env.id=test/Echo-v0", "curriculum={boundaries: []}"],
            "test/Echo-v0 does not say how right an action was: its info has no type_correct and no argument_score",
        ),
        (["env.kwargs={lacks: [argument_score]}"], "its info has no argument_score after a step; craft.reward=coarse"),
        (["preset=gui_r1", "env.kwargs={lacks: [gui_r1_accuracy]}"], "its info has no gui_r1_accuracy"),
        (["env.kwargs={deaf: true}"], "test/Clicks-v0 was asked for a task of"),
        (["curriculum={boundaries: [3, 20]}"], "there is no task of 21 steps or more"),
        (["env.kwargs={asks: true}"], "test/Clicks-v0 asks questions about the screen: say who judges"),
        (["craft.judge=guess"], "unknown judge 'guess'"),
        (["craft.judge=exact", "craft.calibration=/no/such/file"], "craft.calibration=/no/such/file cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_any_rollout(warm, tmp_path, capsys, settings, said):
    out, file = tmp_path / "out", tmp_path / "config.yaml"
    file.write_text(json.dumps({**COMMON, "model": {"path": str(warm), "threads": 1}, "steps": 3, "groups": 2}))
    code = cli.main(["train", "craft_gui", "--config", str(file), "--out", str(out), "--set", *settings])
    err = capsys.readouterr().err
    assert code == 2
    assert said in err
    assert err.strip().startswith("agentgym: error: ")
    assert err.strip().count("\n") == 0
    assert not list(out.glob("trajectories/*"))
    assert not (out / "evaluation.json").exists()


# ---- the environments it is made for, and the examples --------------------------------------------------------

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "configs"
TASKS = ["click-button", "click-checkboxes", "click-checkboxes-large"]


def check_contract(env, kwargs, actions):
    """In every stage: the length that was asked for, and after any action all that a reward is made of."""
    cfg = craft_gui.make_config({})
    with EnvPool(env, kwargs) as pool:
        for stage in (1, 2, 3):
            options = {"split": "train", **craft_gui.reset_options(cfg.curriculum, stage)}
            info = pool.first_info(7, options)
            assert cfg.curriculum.stage_of(info["episode_steps"]) == stage
            for action in (info["expert_action"], *actions):
                after = pool.first_info(7, options, action)
                best = action == info["expert_action"]
                check_step(cfg.craft, after, env)
                assert after["format_ok"] == (action != "gibberish")
                assert (after["type_correct"], after["argument_score"]) == (1, 1) if best else not after["success"]
                assert isinstance(after["action_type"], str)


def test_android_control_keeps_the_contract():
    home = '[{"action": "navigate_home", "point": [-100, -100], "input_text": "none"}]'
    check_contract("agentgym/AndroidControl-v0", {"expert": True}, [home, "gibberish"])


@pytest.mark.browser
def test_miniwob_keeps_the_contract(chromium):
    check_contract("agentgym/MiniWoB-v0", {"task": TASKS, "expert": True}, ["press escape", "gibberish"])


@pytest.mark.browser
def test_the_examples_run_when_made_small(chromium, tmp_path):
    env = {"env": {"kwargs": {"task": TASKS[:1]}}, "eval": {"final_episodes": 1}}
    model = {"model": {"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 300, "threads": 1}}
    few = {"demonstrations": 8, "epochs": 1, "rollout": {"max_turns": 3}}
    values = overlay(load(EXAMPLES / "craft_gui_sft.yaml"), {**env, **model, **few})
    sft.main(sft.make_config(values), tmp_path / "sft")
    few = {"steps": 1, "groups": 2, "group_size": 2, "rollout": {"max_turns": 3}, "curriculum": {"boundaries": []}}
    model = {"model": {"path": str(tmp_path / "sft" / "final"), "threads": 1}}
    cfg = craft_gui.make_config(overlay(load(EXAMPLES / "craft_gui.yaml"), {**env, **model, **few}))
    assert (cfg.preset, cfg.craft.outcome_weight) == ("craft_online", 0.5)
    craft_gui.main(cfg, tmp_path / "craft")
    played = store.read(tmp_path / "craft" / "trajectories" / "step_00001.jsonl")
    assert len(played) == 4
    assert all({"type_correct", "argument_score"} <= u.info.keys() for t in played for u in t.turns if u.action)
