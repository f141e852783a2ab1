"""LSPO: its numbers, its gradient, games seen as abstract ones, and a run of all phases that is killed between them."""

import asyncio
import copy
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from agentgym.envs.werewolf import raw_env
from agentgym.envs.werewolf_game import State
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_rules import ROLES, SEER, Rules
from agentgym.trainers import lspo, lspo_pairs
from agentgym.trainers.lspo_pairs import Ear, Pair, abstract, pairs_of
from agentgym.trainers.lspo_play import StrategicPolicy, Strategist
from transformers import AutoTokenizer, LlamaForCausalLM

from agentgym import store
from agentgym.arguments import argument
from agentgym.cfr_search import Game as AbstractGame
from agentgym.config import load, overlay
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.embeddings import make_encoder
from agentgym.errors import ConfigError
from agentgym.latents import fit, relative
from agentgym.learner import checkpoint, tiny
from agentgym.learner.learner import Learner, OptimConfig
from agentgym.learner.losses import dpo_loss
from agentgym.learner.model import prepare
from agentgym.learner.pack import pack
from agentgym.policies.base import Generation, Request
from agentgym.policies.hf import HFPolicy
from agentgym.renderer import ByteTokenizer, HFTokenizer, Renderer
from agentgym.rollout import RolloutConfig, group_tasks
from agentgym.selfplay import Seat, SelfPlay

EXAMPLES = Path(__file__).parents[2] / "examples" / "configs"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder("minilm")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has learned nothing; it knows the words."""
    words = ["I am the Seer. I think player_0 is a Werewolf. kill see save vote abstain night discussion vote alive"]
    tokenizer = tiny.train_tokenizer(words * 3, 300)
    model = tiny.build_model(tokenizer, seed=1, hidden=32, layers=1, heads=2)
    folder = tmp_path_factory.mktemp("start") / "model"
    checkpoint.save_model(folder, model, tokenizer)
    return folder


# ---- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "reference", "beta", "loss"),
    [
        ((-12, -15), (-13, -14), 0.1, 0.598139),
        ((-13, -14), (-13, -14), 0.1, 0.693147),
        ((-12, -15), (-13, -14), 0.05, 0.644397),
        ((-12, -15), (-13, -14), 0.2, 0.513015),
        ((-30, -25), (-28, -26), 0.1, 0.854355),
    ],
)
def test_dpo_has_the_numbers_of_the_specification(policy, reference, beta, loss):
    chosen, rejected = (torch.tensor([float(x)], requires_grad=True) for x in policy)
    got = dpo_loss(chosen, rejected, *(torch.tensor([float(x)]) for x in reference), beta=beta)
    assert float(got.detach()) == pytest.approx(loss, abs=1e-6)
    got.sum().backward()
    weight = beta * (1 - math.exp(-loss))  # σ(−m) = 1 − exp(−loss)
    assert (float(chosen.grad), float(rejected.grad)) == pytest.approx((-weight, weight), abs=1e-6)


def test_pairs_compare_the_best_with_the_worst_strategy():
    scores = [0.4, 0.4, -0.2]
    assert pairs_of([1, 1, 2], scores) == [(0, 2)]
    assert pairs_of([1, 1, 2], scores, prefer="low_regret") == [(2, 0)]
    assert pairs_of([1, 1, 2], scores, rule="all") == [(0, 2), (1, 2)]
    assert pairs_of([2, 2, 2], [0.1, 0.2, 0.3]) == []
    assert pairs_of([1, 2], [0.5, 0.5 + 1e-9]) == []
    assert pairs_of([], []) == []


def test_the_sign_that_wins_is_the_default():
    """Rock-paper-scissors against Rock 0.6, Paper 0.2, Scissors 0.2: the preferred strategy must be Paper."""
    payoff = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    values = payoff @ [0.6, 0.2, 0.2]
    regrets = values - values.mean()  # of the uniform strategy
    assert pairs_of([0, 1, 2], regrets)[0][0] == 1
    assert pairs_of([0, 1, 2], regrets, prefer="low_regret")[0][0] != 1


# ---- the gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_the_gradient_of_two_pairs_is_that_of_a_stock_model(start, nll_weight):
    pairs = [
        Pair("a", "player_0", [7, 8, 9, 10, 11, 12], [20, 21, 22], [23, 24], 1.0),
        Pair("b", "player_1", [7, 8, 9, 30], [31], [20, 21, 22, 23, 24], 0.5),
    ]
    model = prepare(LlamaForCausalLM.from_pretrained(start))
    rows = lspo_pairs.dpo_rows(pairs)
    lspo_pairs.add_reference(model, rows, 10**6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter))
    stock = LlamaForCausalLM.from_pretrained(start)
    reference = LlamaForCausalLM.from_pretrained(start)
    stock.load_state_dict(model.state_dict())

    def logp(of, prompt, answer):
        ids = torch.tensor([prompt + answer])
        out = of(ids).logits[0].log_softmax(-1)
        return sum(out[len(prompt) + j - 1, token] for j, token in enumerate(answer))

    by_hand = 0
    for pair in pairs:
        margin = sum(
            sign * (logp(stock, pair.prompt, answer) - logp(reference, pair.prompt, answer).detach())
            for sign, answer in ((1, pair.chosen), (-1, pair.rejected))
        )
        nll = -logp(stock, pair.prompt, pair.chosen) / len(pair.chosen)
        by_hand = by_hand + (nll_weight * nll - torch.nn.functional.logsigmoid(0.3 * margin)) / len(pairs)
    by_hand.backward()

    for budget in (10**6, 16):  # together, and one pair a micro-batch
        learner = Learner(model, OptimConfig(lr=1e-9, grad_clip=1e9))
        grads = {}
        learner.optimizer.register_step_pre_hook(
            lambda *_, grads=grads: grads.update({n: p.grad.clone() for n, p in model.named_parameters()})
        )
        metrics = learner.step(pack(rows, budget), lspo_pairs.make_loss(0.3, nll_weight))
        assert metrics["optim/loss"] == pytest.approx(float(by_hand), rel=1e-5)
        for name, parameter in stock.named_parameters():
            assert torch.allclose(grads[name], parameter.grad, rtol=1e-4, atol=1e-6), name


# ---- games as abstract games -----------------------------------------------------------------------------


def played(seed, **settings):
    env = raw_env(brief=True, **settings)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    while not any(env.terminations.values()) and not any(env.truncations.values()):
        env.step(PLAYERS["scripted"](env.infos[env.agent_selection]["view"], rng))
    return env


SMALL = DeepCFRConfig(traversals=1, depth=1, scale=300, hidden=(8,), steps=3, batch=8, capacity=999)


def abstract_game(rules):
    return AbstractGame(State(rules), 7, rules.actions, rules.width, 4, lambda state, seat: state.roles[seat])


@pytest.fixture(scope="module")
def latents(encoder):
    """What scripted players say, clustered."""
    said = {role: [] for role in range(len(ROLES))}
    for seed in range(20):
        env = played(seed)
        for (_, seat), text in env.speeches.items():
            said[env.game.roles[seat]].append(relative(text, seat, 7))
    return fit(said, (3, 2, 2, 2), encoder, 0, 6)


@pytest.mark.parametrize("seed", range(3))
def test_a_game_in_text_is_the_same_abstract_game(latents, seed):
    rules, ear = Rules(latents=latents.counts, codebook=latents.codebook), Ear(latents, 7)
    env = played(seed)
    info = env.infos["player_0"]
    said = {(number, seat): text for number, seat, text in json.loads(info["speeches"])}
    actions = [int(a) for a in info["actions"].split()]
    state, moments = abstract(actions, said, rules, ear)
    assert (state.returns(), state.roles, state.votes) == (list(env.game.totals), env.game.roles, env.game.votes)
    assert [m.text for m in moments] == list(env.speeches.values())
    for (_, seat), moment in zip(said, moments, strict=True):
        assert (moment.seat, moment.state.player()) == (seat, seat)
    for number, codes in enumerate(codes for _, codes, _ in state.talks):
        heard = {seat: code for seat, code in enumerate(codes) if code >= 0}
        speakers = {seat: said[number + 1, seat] for seat in heard}
        assert heard == {seat: ear(seat, state.roles[seat], text).code for seat, text in speakers.items()}


def test_a_speech_is_also_whom_it_accuses_or_clears(encoder):
    said = {role: [] for role in range(len(ROLES))}
    for seed in range(20):
        env = played(seed)
        for (_, seat), text in env.speeches.items():
            said[env.game.roles[seat]].append(relative(text, seat, 7))
    known = fit(said, (3, 2, 2, 2), encoder, 0, 6, arguments=True)
    rules, ear = Rules(latents=known.counts, codebook=known.codebook, stances=known.stances), Ear(known, 7)
    accusations = 0
    for seed in range(3):
        env = played(seed)
        info = env.infos["player_0"]
        spoken = {(number, seat): text for number, seat, text in json.loads(info["speeches"])}
        state, _ = abstract([int(a) for a in info["actions"].split()], spoken, rules, ear)
        assert (state.returns(), state.votes) == (list(env.game.totals), env.game.votes)
        for number, (_, _, arguments) in enumerate(state.talks):
            for seat, heard in enumerate(arguments):
                stance, target = argument(spoken.get((number + 1, seat), ""), seat, 7)
                alive = heard >= 0 and target < 7 and state.talks[number][0][target] >= 0
                assert heard in (-1, 0) or heard == 1 + target + 7 * (stance < 0)
                assert heard > 0 or not alive or state.roles[seat] == SEER
                accusations += heard > 0
    assert accusations > 10

    solver = DeepCFR(abstract_game(rules), SMALL)
    solver.step()
    judge = lspo_pairs.Judge(rules, ear, solver, str, True, 99)
    env = raw_env(brief=True)
    env.reset(seed=0)
    while env.infos[env.agent_selection]["phase"] != "discussion":
        env.step(env.infos[env.agent_selection]["admissible_commands"][0])
    state, _ = abstract(*env.infos[env.agent_selection]["record"], rules, ear)
    seat, role = state.player(), state.roles[state.player()]
    texts = [f"Let us vote for player_{target}." for target in (5, 6)] + ["I have nothing to say."]
    of, scores = judge._judged(lspo_pairs.Speech(state, seat, ""), texts)
    assert [len(one) for one in of] == [2, 2, 1]
    regrets = [solver.regrets(role, s.tensor(seat)[None])[0] for s in (state, state.child(of[0][0]))]
    assert (of[0][0], of[0][1], of[1][1]) == (of[1][0], 5, 6)
    assert scores[:2] == pytest.approx([regrets[0][of[0][0]] + regrets[1][seat] for seat in (5, 6)])
    assert scores[2] == pytest.approx(regrets[0][of[2][0]])


# ---- runs ------------------------------------------------------------------------------------------------


def settings(start, **changes):
    values = {
        "game": {"players": 4, "brief": True, "history": "new", "parse_retries": 1, "max_rounds": 2},
        "model": {"path": str(start), "threads": 1},
        "rollout": {"max_new_tokens": 5, "context_limit": 700, "concurrency": 3, "max_turns": 40},
        "optim": {"lr": 1e-3},
        "lspo": {"iterations": 2, "games": 14, "cfr_iterations": 2, "batch": 4, "public_codes": 4},
        "cfr": {"traversals": 2, "hidden": [16], "steps": 5, "batch": 32, "capacity": 4000, "policy_capacity": 4000},
        "measure": {"games": 2, "predictions": True},
    }
    return lspo.make_config(overlay(values, changes))


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_run_can_be_stopped_after_every_phase_and_resumed(start, tmp_path):
    results = lspo.main(settings(start), tmp_path / "whole")
    assert set(results) == {"before", "step_00001", "after"}
    parts = tmp_path / "parts"
    for number, phase in enumerate((*lspo.PHASES, "tune", "measure")):
        lspo.main(settings(start, stop_after=phase), parts, resume=number > 0)
        assert (parts / f"iteration_{1 + number // len(lspo.PHASES)}" / f"{phase}.json").exists()
    assert not (parts / "final").exists()
    lspo.main(settings(start), parts, resume=True)
    one, other, first = (weights(folder) for folder in (tmp_path / "whole" / "final", parts / "final", start))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], first[name]) for name in one)

    pairs = [json.loads(line) for line in (parts / "iteration_1" / "pairs.jsonl").read_text().splitlines()]
    games = [t for f in sorted((parts / "iteration_1").glob("games_*")) for t in store.read(f)]
    assert len(games) == 4 * 14
    assert len(list((parts / "iteration_1").glob("games_*"))) == 2
    assert pairs
    assert all(pair["gap"] > 0 and pair["chosen"] != pair["rejected"] for pair in pairs)
    spoken = {tuple(c.ids) for t in games for turn in t.turns for c in turn.candidates}
    assert all(tuple(pair[kind]) in spoken for pair in pairs for kind in ("chosen", "rejected"))
    assert all(len(turn.candidates) in (0, 3) for t in games for turn in t.turns)
    assert (parts / "report.html").exists()
    found = json.loads((parts / "iteration_1" / "measure.json").read_text())
    assert not any(name.startswith("predict/") for name in found)  # this model writes no JSON
    infos = [t.info for f in (parts / "trajectories").glob("eval_*") for t in store.read(f)]
    assert sum(info.get("predictions_unread", 0) for info in infos) > 0


class Canned:
    """A model that answers in turn; only what the policies here ask for."""

    def __init__(self, answers):
        self.answers, self.renderer, self.live = answers, Renderer(ByteTokenizer()), True

    def open(self):
        return self

    async def generate(self, request):
        ids = self.renderer.encode_reply(self.answers[int(request.rng.integers(len(self.answers)))])
        return Generation(ids, [0.0] * len(ids), 0, "stop")


def test_a_strategy_decides_where_the_mode_says_so(latents):
    rules = Rules(latents=latents.counts, codebook=latents.codebook)
    ear = Ear(latents, 7)
    solver = DeepCFR(abstract_game(rules), SMALL)
    with pytest.raises(ConfigError, match="no average strategy"):
        Strategist(solver, rules, ear)
    solver.step()
    solver.fit_average()
    answers = ["I have nothing to say.", "I am the Seer.", "I think player_3 is a Werewolf."]
    env = raw_env(brief=True)
    env.reset(seed=0)
    phases = {}
    while len(phases) < 3:
        info = env.infos[env.agent_selection]
        phases.setdefault(info["phase"], copy.deepcopy(info))
        env.step(PLAYERS["scripted"](info["view"], np.random.default_rng(0)))

    def ask(mode, phase, number):
        session = StrategicPolicy(Canned(answers), Strategist(solver, rules, ear), mode).open()
        request = Request([1], 99, np.random.default_rng(number), info=phases[phase])
        return Renderer(ByteTokenizer()).decode_reply(asyncio.run(session.generate(request)).ids)

    for phase in ("night", "vote"):
        info = phases[phase]
        state, _ = abstract(*info["record"], rules, ear)
        mask = state.mask(state.player()).astype(bool)
        sigma = solver.average(state.tensor(state.player())[None], mask[None])[0][mask]
        drawn = Counter(ask("hybrid", phase, number) for number in range(600))
        for command, p in zip(info["admissible_commands"], sigma, strict=True):
            assert drawn[command] / 600 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 600) + 1e-9)
        assert ask("llm", phase, 0) in answers
    seat, role = phases["discussion"]["view"].seat, ROLES.index(phases["discussion"]["role"])
    of = {text: ear(seat, role, text).latent for text in answers}
    said = Counter(of[ask("rerank", "discussion", number)] for number in range(200))
    assert set(said) <= set(of.values())
    assert {ask("hybrid", "discussion", number) for number in range(30)} == set(answers)


def test_wrong_settings_are_named(start):
    for changes, message in (
        ({"lspo": {"candidates": 1}}, "lspo.candidates is 1"),
        ({"lspo": {"latents": [3, 2]}}, "lspo.latents must be four"),
        ({"game": {"codebook": []}}, "game.codebook is LSPO's to set"),
        ({"game": {"seats": 3}}, "game: .*seats"),
        ({"game": {"history": "all"}}, "context=append"),
        ({"measure": {"opponent": "nobody"}}, "measure.opponent"),
        ({"rollout": {"temperature": 0.0}}, "temperature above 0"),
        ({"lspo": {"nll_weight": -1.0}}, "lspo.nll_weight is -1.0"),
        ({"decode": {"backend": "vllm", "staleness": 1}}, "decode.staleness must be 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings(start, **changes)


def test_the_examples_are_configs():
    for name, depth in (("lspo.yaml", 1), ("lspo_smollm2.yaml", 2)):
        assert lspo.make_config(load(EXAMPLES / name)).cfr.depth == depth


def test_two_models_with_strategies_meet_in_one_engine(start, latents):
    """The same games whatever the wrapper: the engine of the models inside is shared while they play."""
    rules, ear = Rules(latents=latents.counts, codebook=latents.codebook), Ear(latents, 7)
    solver = DeepCFR(abstract_game(rules), SMALL)
    solver.step()
    solver.fit_average()

    def games():
        seats = {}
        for name, seed in (("wolves", 1), ("village", 2)):
            model = prepare(LlamaForCausalLM.from_pretrained(start))
            with torch.no_grad():
                model.lm_head.weight.add_(seed * 0.01)
            policy = HFPolicy(model, Renderer(HFTokenizer(AutoTokenizer.from_pretrained(start))), name)
            seats[name] = Seat(StrategicPolicy(policy, Strategist(solver, rules, ear), "rerank"), context="window:1")

        def assign(_, infos):
            return {a: "wolves" if info["role"] == "Werewolf" else "village" for a, info in infos.items()}

        config = RolloutConfig(max_new_tokens=4, context_limit=900, concurrency=2, max_turns=40)
        table = SelfPlay(lambda: raw_env(brief=True, max_rounds=1), seats, config, assign)
        return table.collect(group_tasks(0, 0, 3, 1))

    one, other = games(), games()
    for a, b in zip(one, other, strict=True):
        for agent, trajectory in a.trajectories.items():
            assert [t.text for t in trajectory.turns] == [t.text for t in b.trajectories[agent].turns]
            logps = [np.array([x for s in t.segments for x in s.logps]) for t in (trajectory, b.trajectories[agent])]
            assert np.array_equal(*logps, equal_nan=True)
