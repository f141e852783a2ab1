"""CFR: worked numbers, known rates, and the same results as OpenSpiel."""

import numpy as np
import pytest

from agentgym.cfr import (
    CFR,
    ExternalSampling,
    best_response,
    cfr_plus,
    expected_values,
    exploitability,
    nash_conv,
    regret_matching,
    regrets,
)
from agentgym.errors import ConfigError
from agentgym.game_tree import Tree
from agentgym.games import Kuhn, Leduc, NormalForm, rpssl

GAMES = {"kuhn_poker": Kuhn, "leduc_poker": Leduc}


@pytest.fixture(scope="module")
def kuhn():
    return Tree(Kuhn())


@pytest.fixture(scope="module")
def trees(kuhn):
    return {"kuhn_poker": kuhn, "leduc_poker": Tree(Leduc())}


def run(solver, steps):
    for _ in range(steps):
        solver.step()
    return solver


def test_regret_matching_by_hand():
    legal = np.ones(4, bool)
    assert regret_matching(np.array([3.0, -1, 1, 0]), legal).tolist() == [0.75, 0, 0.25, 0]
    assert regret_matching(np.array([-1.0, -2]), legal[:2]).tolist() == [0.5, 0.5]
    assert regret_matching(np.array([-1.0, -2]), legal[:2], "argmax").tolist() == [1, 0]


def test_regret_matching_never_plays_illegal_actions():
    mask = np.array([[True, False, True], [True, False, True], [False, False, True]])
    found = {
        r: regret_matching(np.array([[1.0, 9, 3], [-1, 9, -2], [-5, 9, -7]]), mask, r) for r in ("uniform", "argmax")
    }
    assert found["uniform"].tolist() == [[0.25, 0, 0.75], [0.5, 0, 0.5], [0, 0, 1]]
    assert found["argmax"].tolist() == [[0.25, 0, 0.75], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(ConfigError, match="unknown rule 'unifrom': did you mean uniform"):
        regret_matching(np.zeros(2), np.ones(2, bool), "unifrom")


def test_two_steps_by_hand():
    """Seat 0 meets the values (2, −1, 0.5), then (1, 0, 2); the first strategies are uniform and (1, 0, 0)."""
    averages = {}
    for linear in (False, True):
        steps = []
        for values in ((2, -1, 0.5), (1, 0, 2)):
            payoffs = np.zeros((2, 3, 1))
            payoffs[0, :, 0] = values
            steps.append(Tree(NormalForm(payoffs)))
        solver = CFR(steps[0], linear=linear)
        solver.step()
        assert solver.regrets[0].tolist() == [1.5, -1.5, 0]
        assert solver.strategy()[0].tolist() == [1, 0, 0]
        solver.tree = steps[1]
        solver.step()
        assert solver.regrets[0].tolist() == [1.5, -2.5, 1]
        assert solver.strategy()[0] == pytest.approx([0.6, 0, 0.4])
        averages[linear] = solver.average()[0]
    assert averages[False] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert averages[True] == pytest.approx([7 / 9, 1 / 9, 1 / 9])


@pytest.mark.parametrize(
    ("mixed", "expected"),
    [
        ((0.53, 0.29, 0.14, 0.02, 0.02), 0.39),
        ((1 / 3, 1 / 3, 1 / 3, 0, 0), 1 / 3),
        ((0, 1 / 3, 1 / 3, 1 / 3, 0), 1 / 3),
        ((0.2,) * 5, 0),
    ],
)
def test_exploitability_in_rpssl(mixed, expected):
    tree = Tree(rpssl())
    sigma = tree.table({0: mixed, 1: mixed})
    assert exploitability(tree, sigma) == pytest.approx(expected, abs=1e-12)
    if expected == 0.39:
        assert best_response(tree, sigma, 0)[0][0].argmax() == 1  # Paper.


@pytest.mark.parametrize(("actions", "mixed"), [(3, [1 / 3] * 3), (4, [0, 1 / 3, 1 / 3, 1 / 3]), (5, [0.2] * 5)])
def test_rpssl_equilibria_from_random_regrets(actions, mixed):
    tree = Tree(rpssl(actions))
    solver = CFR(tree)
    solver.regrets += np.random.default_rng(actions).normal(0, 10, solver.regrets.shape)
    run(solver, 10_000)
    assert np.abs(solver.average() - mixed).max() < 0.02


def test_highest_regret_is_the_best_answer():
    """What LSPO's preference must follow: against too much rock, paper has the highest regret."""
    tree = Tree(rpssl(3))
    assert regrets(tree, tree.table({1: (0.6, 0.2, 0.2)}))[0] == pytest.approx([0, 0.4, -0.4])


def test_uniform_kuhn(kuhn):
    assert nash_conv(kuhn, kuhn.uniform()) == pytest.approx(11 / 12, abs=1e-12)
    assert exploitability(kuhn, kuhn.uniform()) == pytest.approx(11 / 24, abs=1e-12)
    assert expected_values(kuhn, kuhn.uniform()).tolist() == pytest.approx([1 / 8, -1 / 8])


def test_counterfactual_regrets_of_uniform_kuhn(kuhn):
    found = regrets(kuhn, kuhn.uniform())
    calls = {0: -1 / 12, 1: 1 / 12, 2: 1 / 4}
    for (seat, card, history), (_, bet) in zip(kuhn.keys, found, strict=True):
        expected = {(): 1 / 8, (0,): 1 / 24, (1,): calls[card], (0, 1): calls[card]}[history]
        assert bet == pytest.approx(expected, abs=1e-12), (seat, card, history)
    assert found.sum(1) == pytest.approx(np.zeros(12))


def test_external_sampling_is_unbiased(kuhn):
    """Means of sampled regrets at the uniform strategy are the counterfactual regrets, all within 4 standard errors."""

    class Frozen(ExternalSampling):
        def strategy(self, regrets):
            return [0.5, 0.5]

    batches = []
    for seed in range(40):
        solver = run(Frozen(Kuhn(), seed=seed), 500)
        batches.append([solver.rows[key][0][1] / 500 for key in kuhn.keys])
    mean, error = np.mean(batches, 0), np.std(batches, 0, ddof=1) / 40**0.5
    assert (np.abs(mean - regrets(kuhn, kuhn.uniform())[:, 1]) / error).max() < 4


def test_cfr_in_kuhn(kuhn):
    solver = CFR(kuhn)
    for steps, expected in ((10, 0.1924), (100, 0.0514), (1000, 0.0145)):
        run(solver, steps - solver.t)
        assert nash_conv(kuhn, solver.average()) == pytest.approx(expected, abs=6e-5)


def test_cfr_plus_in_kuhn(kuhn):
    solver = cfr_plus(kuhn)
    for steps, expected in ((10, 0.0654), (100, 0.0024)):
        run(solver, steps - solver.t)
        assert nash_conv(kuhn, solver.average()) == pytest.approx(expected, abs=6e-5)
    run(solver, 1000 - solver.t)
    assert nash_conv(kuhn, solver.average()) < 0.001
    sigma = kuhn.policy(solver.average())
    assert expected_values(kuhn, solver.average())[0] == pytest.approx(-1 / 18, abs=1e-4)
    alpha = sigma[0, 0, ()][1]
    assert 0 <= alpha <= 1 / 3 + 1e-3
    # Jack bluffs with α, King bets with 3α, Queen never bets first and calls with α + 1/3.
    for key, bet in (
        ((0, 2, ()), 3 * alpha),
        ((0, 1, ()), 0),
        ((0, 1, (0, 1)), alpha + 1 / 3),
        ((0, 0, (0, 1)), 0),
        ((0, 2, (0, 1)), 1),
        ((1, 1, (1,)), 1 / 3),
        ((1, 0, (0,)), 1 / 3),
        ((1, 2, (0,)), 1),
        ((1, 2, (1,)), 1),
    ):
        assert sigma[key][1] == pytest.approx(bet, abs=0.01), key


@pytest.mark.parametrize("linear", [False, True])
def test_external_sampling_in_kuhn(kuhn, linear):
    solver = run(ExternalSampling(Kuhn(), seed=1, linear=linear), 20_000)
    assert nash_conv(kuhn, kuhn.table(solver.average())) < 0.03


def test_external_sampling_repeats_itself_from_a_seed():
    first, same, other = (run(ExternalSampling(Leduc(), seed=seed), 50).rows for seed in (3, 3, 4))
    assert first == same
    assert first != other


def test_best_response_gains_nothing_on_itself(trees):
    tree = trees["leduc_poker"]
    best, value = best_response(tree, tree.uniform(), 0)
    assert best_response(tree, best, 0)[1] == pytest.approx(value, abs=1e-12)
    assert np.array_equal(best[tree.owner == 1], tree.uniform()[tree.owner == 1])


# Beside OpenSpiel.


def spiel():
    return pytest.importorskip("pyspiel", reason="open-spiel is not installed")


def as_spiel(tree, sigma, game):
    """Our strategy as a tabular policy of OpenSpiel, by a walk through both games."""
    policy = {}

    def walk(ours, theirs):
        if theirs.is_terminal():
            return
        if not theirs.is_chance_node():
            seat = ours.player()
            given = table[ours.infoset(seat)]
            policy[theirs.information_state_string()] = list(zip(ours.legal(), given.tolist(), strict=True))
        for action in theirs.legal_actions():
            walk(ours.child(action), theirs.child(action))

    table = tree.policy(sigma)
    walk(GAMES[game.get_type().short_name](), game.new_initial_state())
    return spiel().TabularPolicy(policy)


@pytest.mark.parametrize("name", GAMES)
def test_values_and_nash_conv_are_openspiels(name, trees):
    pyspiel, tree = spiel(), trees[name]
    game, rng = pyspiel.load_game(name), np.random.default_rng(0)
    random = rng.random(tree.mask.shape) * tree.mask
    for sigma in (tree.uniform(), random / random.sum(1, keepdims=True)):
        policy = as_spiel(tree, sigma, game)
        values = pyspiel.expected_returns(game.new_initial_state(), policy, -1, True)
        assert expected_values(tree, sigma) == pytest.approx(values, abs=1e-9)
        assert nash_conv(tree, sigma) == pytest.approx(pyspiel.nash_conv(game, policy), abs=1e-9)
        assert exploitability(tree, sigma) == pytest.approx(pyspiel.exploitability(game, policy), abs=1e-9)


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("plus", [False, True])
def test_solvers_are_openspiels(name, plus, trees):
    pyspiel, tree = spiel(), trees[name]
    game = pyspiel.load_game(name)
    theirs = (pyspiel.CFRPlusSolver if plus else pyspiel.CFRSolver)(game)
    ours = cfr_plus(tree) if plus else CFR(tree, alternating=True)
    for _ in range(20):
        theirs.evaluate_and_update_policy()
        ours.step()
    assert nash_conv(tree, ours.average()) == pytest.approx(pyspiel.nash_conv(game, theirs.average_policy()), abs=1e-9)


def test_external_sampling_is_as_good_as_openspiels(kuhn):
    """Mean NashConv after 10 iterations over 40 seeds, with a standard error of 0.03; their smoke test wants < 1."""
    game, ours, theirs = spiel().load_game("kuhn_poker"), [], []
    for seed in range(40):
        ours.append(nash_conv(kuhn, kuhn.table(run(ExternalSampling(Kuhn(), seed=seed), 10).average())))
        solver = spiel().ExternalSamplingMCCFRSolver(game, seed)
        for _ in range(10):
            solver.run_iteration()
        theirs.append(spiel().nash_conv(game, solver.average_policy(), True))
    assert np.mean(ours) < 1
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.15)


def test_external_sampling_in_leduc(trees):
    tree = trees["leduc_poker"]
    assert nash_conv(tree, tree.table(run(ExternalSampling(Leduc(), seed=0), 3000).average())) < 2
