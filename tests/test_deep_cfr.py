"""Deep CFR: reservoirs, losses, traversals, and what it reaches in Kuhn poker."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from agentgym.cfr import nash_conv, regrets
from agentgym.cfr_nets import advantage_loss, fit_advantage, fit_policy, masked_softmax, mlp, policy_loss
from agentgym.cfr_search import Game, Request, Traversals, play
from agentgym.deep_cfr import DeepCFR, DeepCFRConfig
from agentgym.errors import ConfigError
from agentgym.game_tree import Tree
from agentgym.games import Kuhn, Leduc, rpssl
from agentgym.reservoir import Reservoir

torch.set_num_threads(1)
KUHN = Game(Kuhn(), seats=2, actions=2, inputs=11, roles=2)
SMALL = DeepCFRConfig(traversals=20, hidden=(16,), steps=5, batch=32)


# Reservoir.


def filled(number, capacity=100, seed=0, chunk=7):
    """A reservoir that was offered 1 … number in chunks, each as x."""
    memory = Reservoir(capacity, 1, 2, seed)
    for items in np.split(np.arange(1, number + 1), range(chunk, number, chunk)):
        x = items[:, None].astype(np.float32)
        memory.add(x, np.ones((len(x), 2), bool), np.repeat(x, 2, 1), 1)
    return memory


def test_reservoir_is_uniform():
    means = [filled(10_000, seed=seed, chunk=1000).x.mean() for seed in range(200)]
    assert np.mean(means) == pytest.approx(5000.5, abs=61)
    kept = np.concatenate([filled(40, 10, seed, chunk=9).x[:, 0] for seed in range(2000)])
    counts = np.bincount(kept.astype(int), minlength=41)[1:]
    assert counts.sum() == 20_000
    assert np.abs(counts - 500).max() < 5 * (500 * 0.75) ** 0.5


def test_reservoir_keeps_items_whole():
    memory = filled(1000)
    assert np.array_equal(memory.y[:, 0], memory.x[:, 0])
    assert len(np.unique(memory.x)) == len(memory) == 100
    assert memory.seen == 1000
    few = filled(5)
    assert len(few) == 5
    assert few.x[:5, 0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [0, 5, 1000])
def test_reservoir_goes_on_after_loading(tmp_path, number):
    memory = filled(number) if number else Reservoir(100, 1, 2, 0)
    memory.save(tmp_path / "m.npz")
    loaded = Reservoir.load(tmp_path / "m.npz")
    for one in (memory, loaded):
        one.add(np.full((500, 1), 7, np.float32), np.ones((500, 2), bool), np.zeros((500, 2), np.float32), 2)
    assert loaded.seen == memory.seen
    for name in ("x", "mask", "y", "t"):
        assert np.array_equal(getattr(loaded, name)[: len(loaded)], getattr(memory, name)[: len(memory)])
    assert [file.name for file in tmp_path.iterdir()] == ["m.npz"]


def rewrite(file, change):
    """Change the arrays of a saved reservoir."""
    arrays = dict(np.load(file))
    change(arrays)
    np.savez(file, **arrays)


def header(**changes):
    def change(arrays):
        arrays["header"] = np.array(json.dumps({**json.loads(str(arrays["header"])), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.pop("y"), "y"),
        (lambda a: a.update(x=a["x"][:-1]), "x is float32"),
        (lambda a: a.update(y=a["y"].astype(np.float64)), "y is float64"),
        (lambda a: a["x"].__setitem__((3, 0), np.nan), "x has numbers that are not finite"),
        (lambda a: a["y"].__setitem__((3, 0), np.inf), "y has numbers that are not finite"),
        (lambda a: a["mask"].__setitem__(3, False), "no legal action"),
        (lambda a: a["mask"].__setitem__((3, 0), False), "illegal action has a target"),
        (lambda a: a["t"].__setitem__(3, 0), "iteration is below 1"),
        (lambda a: a.update(t=a["t"][:, None]), "t is float32"),
        (lambda a: a.update(x=np.array([{}], object)), "pickle"),
        (lambda a: a.update(header=np.array("{")), "property name"),
        (header(seen=50), "expected"),
        (header(seen=-1), "expected a count"),
        (header(seen="many"), "expected a count"),
        (header(capacity=0), "capacity=0"),
        (header(capacity=10), "expected"),
        (header(rng={}), ""),
    ],
)
def test_reservoir_refuses_inconsistent_files(tmp_path, change, reason):
    file = tmp_path / "m.npz"
    filled(1000).save(file)
    rewrite(file, change)
    with pytest.raises(ConfigError, match=rf"m\.npz is a damaged reservoir \(.*{reason}"):
        Reservoir.load(file)


def test_reservoir_refuses_damaged_files(tmp_path):
    file = tmp_path / "m.npz"
    filled(1000).save(file)
    whole = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        inside = archive.getinfo("x.npy").header_offset + 300
    flipped = bytearray(whole)
    flipped[inside] ^= 1
    damaged = [whole[:cut] for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*damaged, bytes(flipped), b"not a reservoir", bytes(len(whole))):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"m\.npz is a damaged reservoir \(.+\): take an older one"):
            Reservoir.load(file)
    with pytest.raises(ConfigError, match="no such reservoir"):
        Reservoir.load(tmp_path / "other.npz")


def test_reservoir_refuses_sizes():
    with pytest.raises(ConfigError, match="capacity=0"):
        Reservoir(0, 1, 1)


# Networks.


def test_illegal_actions_have_no_loss_and_no_gradient():
    mask = torch.tensor([[True, False, True]])
    target, weight = torch.tensor([[1.0, 0, 2.0]]), torch.ones(1)
    output = torch.tensor([[1.0, 5.0, 2.0]], requires_grad=True)
    loss = advantage_loss(output, target, mask, weight)
    assert loss.item() == 0
    output = torch.tensor([[0.5, 5.0, 0.0]], requires_grad=True)
    advantage_loss(output, target, mask, weight).backward()
    assert output.grad.tolist() == [[-1.0, 0.0, -4.0]]
    output = torch.tensor([[0.5, 5.0, 0.0]], requires_grad=True)
    policy_loss(output, torch.tensor([[0.5, 0, 0.5]]), mask, weight).backward()
    assert output.grad[0, 1] == 0
    assert masked_softmax(output, mask)[0, 1] == 0


def test_losses_by_hand():
    mask = torch.ones(2, 2, dtype=torch.bool)
    output, target = torch.tensor([[0.0, 0], [1, 3]]), torch.tensor([[1.0, 2], [1, 1]])
    assert advantage_loss(output, target, mask, torch.tensor([0.5, 1.0])).item() == (0.5 * 5 + 1 * 4) / 2
    sigma = torch.tensor([[1.0, 0], [0.5, 0.5]])
    logits = torch.zeros(2, 2)
    assert policy_loss(logits, sigma, mask, torch.tensor([0.5, 1.0])).item() == 0.5 * 0.5 / 2


def test_fits_learn_weighted_means():
    """Two targets at one input, of iterations 1 and 3: the fit is their mean weighted 1 : 3."""
    x, mask = np.ones((2, 1), np.float32), np.ones((2, 2), bool)
    for fit, targets in ((fit_advantage, [[4.0, 0], [0, 4]]), (fit_policy, [[1.0, 0], [0, 1]])):
        memory = Reservoir(2, 1, 2)
        for row, t in zip(np.array(targets, np.float32), (1, 3), strict=True):
            memory.add(x[:1], mask[:1], row[None], t)
        net = mlp(1, 2, (16,), 0)
        fit(net, memory, 3, 300, 1024, 1e-2, 0)
        output = net(torch.ones(1, 1))
        found = output if fit is fit_advantage else output.softmax(-1)
        expected = [1, 3] if fit is fit_advantage else [0.25, 0.75]
        assert found[0].tolist() == pytest.approx(expected, abs=0.15)


def test_nets_come_from_their_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, same, other = (mlp(3, 2, (8,), seed)[0].weight for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


# Traversals.


def test_full_traversals_are_unbiased():
    """At the uniform strategy the mean of sampled regrets is the counterfactual regret, within 4 standard errors."""
    tree = Tree(Kuhn())
    number = 6000
    solver = DeepCFR(KUHN, DeepCFRConfig(traversals=number, concurrent=1000))
    solver.traverse()
    found = {}
    for x, _, r in [item for items in solver._traversals.regrets for item in items]:
        found.setdefault(x.tobytes(), []).append(r[1])
    exact = regrets(tree, tree.uniform())[:, 1]
    for state, seat, expected in zip(tree.states, tree.owner, exact, strict=True):
        values = np.array(found[state.tensor(int(seat)).tobytes()])
        error = (np.square(values).sum() / number - (values.sum() / number) ** 2) ** 0.5 / number**0.5
        assert abs(values.sum() / number - expected) < 4 * error
        assert len(values) / number == pytest.approx(1 / 6 if state.history else 1 / 3, abs=0.03)


def test_batches_answer_as_single_traversals_do():
    """However many play at a time, each search meets the strategy of its own decisions."""
    solver = DeepCFR(KUHN, SMALL)
    solver.step()
    requests = [Request(Kuhn().child(a).child(b), 0) for a in range(3) for b in range(3) if a != b]
    together = solver.decide(requests)
    for request, decision in zip(requests, together, strict=True):
        alone = solver.decide([request])[0]
        assert alone.sigma == pytest.approx(decision.sigma, abs=1e-6)
        assert np.array_equal(alone.x, request.state.tensor(0))


def test_decisions_are_drawn_from_the_strategy_and_explored():
    solver = DeepCFR(KUHN, SMALL)
    solver.strategy = lambda role, x, mask: np.tile([1.0, 0.0], (len(x), 1))
    state = Kuhn().child(0).child(1)
    assert not any(d.action for d in solver.decide([Request(state, 0)] * 2000))
    explored = np.mean([d.action for d in solver.decide([Request(state, 0, 0.1)] * 4000)])
    assert explored == pytest.approx(0.05, abs=0.015)


def test_play_returns_in_order_and_ends_empty_jobs():
    def job(number):
        for _ in range(number % 4):
            yield number
        return number

    sizes = []

    def decide(requests):
        sizes.append(len(requests))
        return requests

    assert play(map(job, range(50)), decide, 8) == list(range(50))
    assert max(sizes) == 8
    assert play([], decide, 8) == []


@pytest.mark.parametrize("depth", [1, 2, None])
def test_search_is_cut_after_own_decisions(depth):
    """From the first decision in Leduc, nothing is stored of decisions with `depth` own ones before them."""
    game = Game(Leduc(), seats=2, actions=3, inputs=30, roles=2)
    found = Traversals(game, np.random.default_rng(0), depth=depth, rollouts=2)
    state = game.root.child(0).child(2)
    play([found.search(state, 0, 0) for _ in range(100)], DeepCFR(game, SMALL).decide, 100)
    moves = np.array([x[14:] for x, *_ in found.regrets[0]]).reshape(-1, 2, 4, 2).any(-1)
    layers = moves[:, :, ::2].sum((1, 2)).max() + 1  # Seat 0 makes every other move of a round.
    assert layers == depth if depth else layers > 2
    assert (moves.any((1, 2)) == 0).sum() == 100
    assert not found.regrets[1]


def test_truncated_values_are_those_of_rollouts():
    """With one layer and many rollouts, the regrets at the root of Kuhn are those of the uniform strategy."""
    solver = DeepCFR(KUHN, DeepCFRConfig(traversals=3000, depth=1, rollouts=4))
    solver.traverse()
    tree = Tree(Kuhn())
    means = {}
    for x, _, r in solver._traversals.regrets[0]:
        means.setdefault(x.tobytes(), []).append(r[1])
    for state, seat, value in zip(tree.states, tree.owner, tree.counterfactual_values(tree.uniform())[0], strict=True):
        if seat == 0 and not state.history:
            expected = (value[1] - value[0]) / 2 * 3  # Given the card, of probability 1/3.
            assert np.mean(means[state.tensor(0).tobytes()]) == pytest.approx(expected, abs=0.12)


def test_sampled_games_hold_the_own_decisions():
    found = Traversals(KUHN, np.random.default_rng(0), depth=2)
    solver = DeepCFR(KUHN, SMALL)
    games = play([found.sample_game(1) for _ in range(50)], solver.decide, 50)
    assert all(len(game) == 1 and game[0].player() == 1 for game in games)
    assert not found.strategies


def test_single_choices_are_made_without_a_strategy():
    game = Game(rpssl(2), seats=2, actions=2, inputs=2, roles=2)

    class Forced(type(game.root)):
        def legal(self):
            return (1,) if not self.moves else super().legal()

        def child(self, action):
            return Forced(self.payoffs, (*self.moves, action))

    game = Game(Forced(game.root.payoffs), seats=2, actions=2, inputs=2, roles=2)
    found = Traversals(game, np.random.default_rng(0))
    solver = DeepCFR(game, SMALL)
    values = play([found.search(game.root, 0, 0) for _ in range(10)], solver.decide, 10)
    assert not found.regrets[0]
    assert len(found.strategies) == 10
    assert {abs(value) for value in values} <= {0.0, 1.0}


# The solver.


def test_deep_cfr_in_kuhn():
    tree = Tree(Kuhn())
    config = DeepCFRConfig(traversals=300, hidden=(32, 32), steps=50, batch=256, lr=1e-2)
    solver = DeepCFR(KUHN, config, seed=0)
    for _ in range(25):
        losses = solver.step()
    assert set(losses) == {"cfr/advantage_loss_0", "cfr/advantage_loss_1"}
    solver.fit_average(500)
    average, last = (nash_conv(tree, solver.table(tree, average)) for average in (True, False))
    assert average < 0.2
    assert average < last


def test_seats_share_the_net_of_their_role():
    """Seats that share a net, told apart by their inputs alone: RPS stays near its equilibrium."""
    root = rpssl(3)
    game = Game(root, seats=2, actions=3, inputs=2, roles=1, role=lambda state, seat: 0)
    solver = DeepCFR(game, DeepCFRConfig(traversals=50, hidden=(16,), steps=40, batch=128, lr=1e-2), seed=0)
    for _ in range(10):
        solver.step()
    assert len(solver.advantages) == 1
    assert solver.advantages[0].seen == 10 * 2 * 50
    assert set(map(tuple, solver.advantages[0].x[:1000])) == {(1.0, 0.0), (0.0, 1.0)}


def test_utilities_are_scaled():
    found = [DeepCFR(KUHN, DeepCFRConfig(traversals=20, hidden=(4,), steps=1, scale=scale)) for scale in (1, 300)]
    for solver in found:
        solver.step()
    full, scaled = (solver.advantages[0].y[: len(solver.advantages[0])] for solver in found)
    assert scaled * 300 == pytest.approx(full, abs=1e-5)


@pytest.mark.parametrize("depth", [None, 1])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, depth):
    config = DeepCFRConfig(**{**SMALL.__dict__, "depth": depth, "capacity": 150})
    whole = DeepCFR(KUHN, config, seed=5)
    for _ in range(4):
        whole.step()
    whole.fit_average()
    first = DeepCFR(KUHN, config, seed=5)
    for _ in range(2):
        first.step()
        first.save(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["save_000001"]
    (tmp_path / ".save_000002.tmp").mkdir()  # What a kill leaves.
    second = DeepCFR(KUHN, config, seed=99)
    assert second.resume(tmp_path)
    for _ in range(2):
        second.step()
    second.fit_average()
    tree = Tree(Kuhn())
    for average in (True, False):
        assert np.array_equal(second.table(tree, average), whole.table(tree, average))
    for one, two in zip((*whole.nets, whole.average_net), (*second.nets, second.average_net), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert (second.t, second.decisions) == (whole.t, whole.decisions)
    assert np.array_equal(second.policies.x[: len(second.policies)], whole.policies.x[: len(whole.policies)])


def test_nothing_to_resume(tmp_path):
    assert not DeepCFR(KUHN, SMALL).resume(tmp_path / "none")


def test_resume_refuses_what_does_not_fit(tmp_path):
    solver = DeepCFR(KUHN, SMALL)
    solver.step()
    solver.save(tmp_path)
    leduc = Game(Leduc(), seats=2, actions=3, inputs=30, roles=2)
    with pytest.raises(ConfigError, match=r"advantage_0.npz holds .* 11 inputs and 2 actions, expected .* 30 inputs"):
        DeepCFR(leduc, SMALL).resume(tmp_path)
    with pytest.raises(ConfigError, match="of another config"):
        DeepCFR(KUHN, DeepCFRConfig(hidden=(8, 8))).resume(tmp_path)
    net = tmp_path / "save_000000" / "solver.pt"
    content = net.read_bytes()
    net.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        DeepCFR(KUHN, SMALL).resume(tmp_path)
    (tmp_path / "save_000000" / "policy.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"policy\.npz is a damaged reservoir"):
        DeepCFR(KUHN, SMALL).resume(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"depth": 0}, "depth=0"),
        ({"explore": 1.5}, "explore=1.5"),
        ({"traversals": 0}, "traversals=0"),
        ({"scale": 0}, "scale=0"),
        ({"rule": "max"}, "unknown rule 'max'"),
    ],
)
def test_config_refuses(setting, message):
    with pytest.raises(ConfigError, match=message):
        DeepCFRConfig(**setting)


def test_average_before_its_fit_is_refused():
    with pytest.raises(ConfigError, match="fit_average"):
        DeepCFR(KUHN, SMALL).average(np.zeros((1, 11), np.float32), np.ones((1, 2), bool))


def test_cfr_alone_does_not_import_torch():
    code = "import sys, agentgym.cfr; assert not [m for m in ('torch', 'transformers') if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)
