"""The small games: against OpenSpiel's trees, their known sizes, and the protocol's promises."""

import numpy as np
import pytest

from agentgym.errors import ConfigError
from agentgym.game_tree import Tree
from agentgym.games import CHANCE, RPSSL_NAMES, TERMINAL, Kuhn, Leduc, NormalForm, State, rpssl

GAMES = {"kuhn_poker": Kuhn, "leduc_poker": Leduc}


def walk(ours, theirs, keys):
    """Compare two games history by history; returns the number of histories."""
    assert (ours.player() == CHANCE) == theirs.is_chance_node()
    assert (ours.player() == TERMINAL) == theirs.is_terminal()
    if theirs.is_terminal():
        assert list(ours.returns()) == theirs.returns()
        return 1
    if theirs.is_chance_node():
        assert dict(ours.chance()) == pytest.approx(dict(theirs.chance_outcomes()))
    else:
        seat = theirs.current_player()
        assert ours.player() == seat
        assert list(ours.legal()) == theirs.legal_actions()
        key, x = ours.infoset(seat), tuple(ours.tensor(seat))
        keys.add((key, theirs.information_state_string(seat), x))
    return 1 + sum(walk(ours.child(a), theirs.child(a), keys) for a in theirs.legal_actions())


@pytest.mark.parametrize(("name", "histories", "infosets"), [("kuhn_poker", 58, 12), ("leduc_poker", 9457, 936)])
def test_tree_is_openspiels(name, histories, infosets):
    pyspiel = pytest.importorskip("pyspiel", reason="open-spiel is not installed")
    keys = set()
    assert walk(GAMES[name](), pyspiel.load_game(name).new_initial_state(), keys) == histories
    assert len(keys) == infosets
    for part in zip(*keys, strict=True):
        assert len(set(part)) == infosets  # Keys and tensors tell apart exactly what OpenSpiel tells apart.


@pytest.mark.parametrize(("root", "sizes"), [(Kuhn(), (58, 12)), (Leduc(), (9457, 936)), (rpssl(4), (21, 2))])
def test_tree_sizes(root, sizes):
    tree = Tree(root)
    assert (len(tree.player), len(tree.keys)) == sizes
    assert tree.reach(tree.uniform()).prod(1)[tree.player == TERMINAL].sum() == pytest.approx(1)


def test_rpssl_rules():
    root = rpssl()
    wins = {
        (RPSSL_NAMES[a], RPSSL_NAMES[b])
        for a in range(5)
        for b in range(5)
        if root.child(a).child(b).returns() == (1.0, -1.0)
    }
    assert wins == {
        ("rock", "scissors"), ("rock", "lizard"), ("paper", "rock"), ("paper", "Spock"), ("scissors", "paper"),
        ("scissors", "lizard"), ("Spock", "rock"), ("Spock", "scissors"), ("lizard", "paper"), ("lizard", "Spock"),
    }  # fmt: skip
    assert np.array_equal(root.payoffs[0], -root.payoffs[0].T)


@pytest.mark.parametrize("actions", [1, 6])
def test_rpssl_refuses_other_sizes(actions):
    with pytest.raises(ConfigError, match="2 to 5"):
        rpssl(actions)


@pytest.mark.parametrize("root", [Kuhn(), Leduc()])
def test_chance_is_sampled_as_listed(root):
    rng = np.random.default_rng(0)
    state = root.child(root.chance()[0][0])
    drawn = [state.sample_chance(rng) for _ in range(3000)]
    for action, probability in state.chance():
        assert drawn.count(action) / 3000 == pytest.approx(probability, abs=4 * (probability / 3000) ** 0.5)
    assert set(drawn) == {action for action, _ in state.chance()}


def test_states_do_not_change():
    state = Kuhn().child(0).child(1)
    before = state.infoset(0)
    state.child(1).child(0)
    assert state.infoset(0) == before
    assert not hasattr(state, "__dict__")


class Forgetful(NormalForm):
    """Seat 0 moves twice and forgets its first move."""

    def player(self):
        return 0 if len(self.moves) < 2 else TERMINAL

    def child(self, action):
        return Forgetful(self.payoffs, (*self.moves, action))

    def infoset(self, player):
        return len(self.moves)


def test_tree_refuses_what_cfr_cannot_solve():
    with pytest.raises(ConfigError, match="perfect recall"):
        Tree(Forgetful(np.zeros((2, 2, 2))))
    with pytest.raises(ConfigError, match="more than 1000 histories"):
        Tree(Leduc(), limit=1000)


def test_policy_to_table_and_back():
    tree = Tree(Leduc())
    policy = tree.policy(tree.uniform())
    assert {len(p) for p in policy.values()} == {2, 3}
    assert np.array_equal(tree.table(policy), tree.uniform())
    key = tree.keys[0]
    assert tree.table({key: [0.25, 0.75]})[0].tolist() == [0.25, 0.75, 0]
    for wrong in ([0.5, 0.6], [1.5, -0.5], [1.0], [np.nan, 1.0]):
        with pytest.raises(ConfigError, match="2 probabilities"):
            tree.table({key: wrong})
    with pytest.raises(ConfigError, match="no information set 'nowhere'"):
        tree.table({"nowhere": [1.0]})


def test_own_chance_sampling_is_used():
    class Loaded(Kuhn):
        __slots__ = ()

        def sample_chance(self, rng):
            return 2

    state: State = Loaded()
    assert state.sample_chance(np.random.default_rng(0)) == 2
