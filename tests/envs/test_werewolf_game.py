import functools
from fractions import Fraction

import numpy as np
import pytest
from agentgym.envs.werewolf_game import (
    CHANCE,
    NIGHT,
    TALK,
    TERMINAL,
    TRUNCATED,
    VILLAGE,
    VOTE,
    WOLVES,
    State,
    new_game,
)
from agentgym.envs.werewolf_players import PLAYERS, number_of
from agentgym.envs.werewolf_rules import CASTS, DOCTOR, SEER, VILLAGER, WOLF, Rules

from agentgym.errors import ConfigError

CAST = CASTS[7]
SEVEN, FOUR = Rules(), Rules(players=4)
# by role and latent strategy, what is heard: codes 0 to 2
BOOK = [
    [[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]],
    [[1, 0, 0], [0, 0.5, 0.5]],
    [[0, 1, 0]] * 2,
    [[0.5, 0, 0.5], [0, 1, 0]],
]


def deal(rules, roles):
    state = State(rules)
    state.play([dealt for dealt, _ in rules.deals].index(tuple(roles)))
    return state


def play(state, actions, rng=None):
    """Play actions; speeches are latent strategy 0."""
    for action in actions:
        talk = state.phase == TALK
        state.play(state.legal()[0] if talk else action)
        while rng is not None and state.player() == CHANCE:
            state.play(state.sample_chance(rng))


def speak(state):
    while state.phase == TALK and state.player() >= 0:
        state.play(state.legal()[0])


def random_game(rules, rng, look=None):
    state = new_game(rules, rng)
    decisions = 0
    while state.player() != TERMINAL:
        if look is not None:
            look(state)
        chance = state.player() == CHANCE
        legal = [state.sample_chance(rng)] if chance else state.legal()
        decisions += not chance
        state.play(legal[int(rng.random() * len(legal))])
    return state, decisions


@functools.cache
def wolves_win(wolves, others, doctor, gt, abstain):
    """Probability that the wolves win before a night, if all play at random, by the recurrence of the game."""

    def over(w, o):
        return 0 if w == 0 else 1 if w > o or (w == o and not gt) else None

    def after_night(w, o, d, weight):
        """Weight of a win, and weight of coming back to where we are."""
        if (end := over(w, o)) is not None:
            return weight * end, 0
        n = w + o
        nobody = Fraction(1, n**n) if abstain else Fraction(0)
        out = (1 - nobody) / n
        won, back = Fraction(0), Fraction(0)
        options = [(w - 1, o, d, w * out), (w, o - 1, 0, d * out), (w, o - 1, d, (o - d) * out), (w, o, d, nobody)]
        for w2, o2, d2, p in options:
            if not p:
                continue
            if (w2, o2, d2) == (wolves, others, doctor):
                back += weight * p
            else:
                end = over(w2, o2)
                won += weight * p * (wolves_win(w2, o2, d2, gt, abstain) if end is None else end)
        return won, back

    save = Fraction(doctor, wolves + others)
    killed = (1 - save) / others
    branches = [(wolves, others, doctor, save), (wolves, others - 1, 0, doctor * killed)]
    branches.append((wolves, others - 1, doctor, (others - doctor) * killed))
    found = [after_night(w, o, d, p) for w, o, d, p in branches if p]
    return sum(won for won, _ in found) / (1 - sum(back for _, back in found))


EXACT = {
    (7, "geq", True): 0.871639,
    (7, "geq", False): 0.870326,
    (7, "gt", True): 0.697171,
    (7, "gt", False): 0.648168,
    (4, "geq", True): Fraction(55, 81),
    (4, "geq", False): Fraction(2, 3),
    (4, "gt", True): Fraction(431, 648),
    (4, "gt", False): Fraction(2, 3),
}


@pytest.mark.parametrize(("players", "parity", "abstain"), EXACT)
def test_exact_win_rate_of_random_play(players, parity, abstain):
    start = (2, 5, 1) if players == 7 else (1, 3, 0)
    exact = wolves_win(*start, parity == "gt", abstain)
    assert float(exact) == pytest.approx(float(EXACT[players, parity, abstain]), abs=5e-7)
    if players == 4:
        assert exact == EXACT[players, parity, abstain]
    rules, rng, games = Rules(players, parity, abstain=abstain), np.random.default_rng(11), 3000
    won = sum(random_game(rules, rng)[0].winner == WOLVES for _ in range(games))
    sigma = (float(exact) * (1 - float(exact)) / games) ** 0.5
    assert won / games == pytest.approx(float(exact), abs=3 * sigma)


@pytest.mark.parametrize(
    ("parity", "rounds", "decisions", "fewest", "wolf", "village"),
    [("geq", 2.36, 25.8, 18, 229.8, -226), ("gt", 2.93, 32.9, 26, 128.0, -120)],
)
def test_random_play_of_seven(parity, rounds, decisions, fewest, wolf, village):
    rules, rng = Rules(parity=parity), np.random.default_rng(5)
    games = [random_game(rules, rng) for _ in range(2000)]
    saved = np.mean([state.nights[0][1] < 0 for state, _ in games])
    assert saved == pytest.approx(1 / 7, abs=3 * (6 / 49 / 2000) ** 0.5)
    assert np.mean([state.round for state, _ in games]) == pytest.approx(rounds, abs=0.08)
    assert np.mean([count for _, count in games]) == pytest.approx(decisions, abs=0.8)
    assert min(count for _, count in games) >= fewest
    paid = {True: [], False: []}
    for state, _ in games:
        for seat, total in enumerate(state.returns()):
            paid[state.roles[seat] == WOLF].append(total)
    # a game pays its two wolves alike, so the interval is that of 2000 games with a deviation of 300
    assert np.mean(paid[True]) == pytest.approx(wolf, abs=3 * 300 / 2000**0.5)
    assert np.mean(paid[False]) == pytest.approx(village, abs=3 * 300 / 2000**0.5)


def test_deal():
    assert len(SEVEN.deals) == len({roles for roles, _ in SEVEN.deals}) == 420
    assert len(FOUR.deals) == 12
    outcomes = State(SEVEN).chance()
    assert {p for _, p in outcomes} == {1 / 420}
    rng = np.random.default_rng(0)
    counts = np.bincount([State(FOUR).sample_chance(rng) for _ in range(12_000)], minlength=12)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_decisions_of_the_first_round():
    """16 after a kill, 18 after a save."""
    for save, decisions in ((5, 16), (6, 18)):
        state = deal(SEVEN, CAST)
        play(state, [6, 6, 0, save])
        spoken = len(state.queue)
        speak(state)
        assert (state.phase, 4 + spoken + len(state.queue)) == (VOTE, decisions)


def test_order_and_legal_actions():
    state = deal(SEVEN, (VILLAGER, WOLF, SEER, VILLAGER, WOLF, DOCTOR, VILLAGER))
    assert state.queue == (1, 4, 2, 5)
    assert state.legal() == [0, 2, 3, 5, 6]
    state.play(0)
    assert (state.player(), state.proposal(4), state.proposal(1)) == (4, 0, -1)
    state.play(3)  # the wolf with the higher number decides
    assert state.legal() == [0, 1, 3, 4, 5, 6]
    state.play(1)
    assert state.legal() == [0, 1, 2, 3, 4, 5, 6]  # the Doctor may save itself
    state.play(0)
    assert state.nights == (((-1, 0, 1, -1, 3, 0, -1), 3),)
    assert state.queue == (0, 1, 2, 4, 5, 6)
    assert state.legal() == [8, 9]
    state.play(8)
    assert state.legal() == [8, 9, 10]  # of a Werewolf
    speak(state)
    assert state.legal() == [1, 2, 4, 5, 6, 7]
    assert list(state.mask(0)) == [0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]
    assert not state.mask(1).any()


def test_everybody_abstains():
    state = deal(SEVEN, CAST)
    play(state, [6, 6, 0, 6])
    speak(state)
    play(state, [7] * 7)
    assert state.votes == (((7,) * 7, -1),)
    assert (state.round, state.phase, state.player()) == (2, NIGHT, 0)


def test_rewards_of_lspo():
    """The two days of the specification: X = 0 and Z = 1 are the wolves, Y = 4."""
    state = deal(SEVEN, CAST)
    play(state, [6, 6, 0, 6])
    speak(state)
    play(state, [7, 7, 7, 7, 0, 7, 7])
    assert state.returns() == [-10, 0, 10, 10, 30, 10, 10]
    play(state, [6, 0, 6])
    speak(state)
    play(state, [7, 7, 7, 1, 7, 7])
    assert (state.winner, state.player(), state.legal()) == (VILLAGE, TERMINAL, [])
    assert state.returns() == [-310, -310, 320, 320, 360, 320, 320]


def test_rewards_of_wrong_votes_and_of_the_dead():
    state = deal(SEVEN, CAST)
    play(state, [6, 6, 2, 2])  # 6 is killed
    speak(state)
    play(state, [5, 5, 5, 7, 5, 4])  # 5 is out
    assert state.returns() == [10, 10, -20, 0, -20, -30, 0]


def test_a_night_that_wins_pays_no_survival():
    state = deal(FOUR, CASTS[4])
    play(state, [3, 0])
    speak(state)
    play(state, [1, 2, 1])  # 1 against 1
    assert state.winner == WOLVES
    state = deal(Rules(players=4, parity="gt"), CASTS[4])
    play(state, [3, 0])
    speak(state)
    play(state, [1, 2, 1])
    before = state.returns()
    play(state, [2])
    assert state.winner == WOLVES
    assert np.subtract(state.returns(), before).tolist() == [300, -300, -300, -300]


def test_rewards_of_sla():
    state = deal(Rules(rewards="sla"), CAST)
    play(state, [6, 6, 0, 6])  # the Seer finds a wolf, the Doctor saves
    assert state.returns() == [-7, -7, 2, 5, 0, 0, 0]
    speak(state)
    play(state, [7, 7, 0, 4, 0, 7, 7])  # two right votes, one wrong, a wolf is out
    assert state.returns() == [-13, -13, 2 + 1 + 5, 5 - 1 + 5, 6, 5, 5]
    play(state, [6, 3, 5])
    assert state.returns() == [-13, -13 + 5, 8 - 5, 9 - 5, 1, 0, 0]


@pytest.mark.parametrize(("rewards", "win"), [("lspo", 300), ("sla", 100), ("win", 1)])
def test_every_seat_has_the_win_term(rewards, win):
    rules, rng = Rules(rewards=rewards), np.random.default_rng(1)
    for _ in range(30):
        totals = []
        state, _ = random_game(rules, rng, look=functools.partial(lambda kept, s: kept.append(s.returns()), totals))
        terms = [win if (state.winner == WOLVES) == (role == WOLF) else -win for role in state.roles]
        assert sum(terms) in (3 * win, -3 * win)
        if rewards == "win":
            assert state.returns() == terms
        rest = np.subtract(state.returns(), totals[-1]) - terms
        assert np.abs(rest).max() <= 40


def test_truncated_at_the_cap():
    state = deal(Rules(max_rounds=2), CAST)
    for _ in range(2):
        play(state, [6, 6, 0, 6])
        speak(state)
        play(state, [7] * 7)
    assert (state.winner, state.player()) == (TRUNCATED, TERMINAL)
    assert state.returns() == [10.0] * 7  # survived twice, no win term


def test_ties_are_drawn_among_the_tied():
    state = deal(SEVEN, CAST)
    play(state, [6, 6, 0, 0])
    speak(state)
    play(state, [2, 3, 3, 2, 7, 7])
    assert (state.player(), state.chance()) == (CHANCE, [(2, 0.5), (3, 0.5)])
    rng = np.random.default_rng(2)
    outs = [state.child(state.sample_chance(rng)).votes[0][1] for _ in range(10_000)]
    assert 0.485 <= outs.count(2) / 10_000 <= 0.515
    assert outs.count(2) + outs.count(3) == 10_000


# ---- what a seat knows -----------------------------------------------------------------------------------


def test_vector_of_the_paper():
    assert (SEVEN.width, FOUR.width, SEVEN.actions) == (211, 88, 11)
    state = deal(SEVEN, CAST)
    play(state, [6, 5, 0, 6])  # 5 is killed
    speak(state)
    play(state, [2, 2, 0, 0, 7, 0])  # 0 is out
    x = state.tensor(2)
    assert x.shape == (211,)
    assert x.dtype == np.float32
    assert x[:7].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert x[7:11].tolist() == [0, 1, 0, 0]
    assert x[11] == np.float32(0.2)
    assert x[12:15].tolist() == [1, 0, 0]
    assert x[15:22].tolist() == [0, 1, 1, 1, 1, 0, 1]
    assert x[22:29].tolist() == [1, 0, 0, 0, 0, 0, 0]  # saw that 0 is a Werewolf
    assert x[29:36].tolist() == [0, 0, 0, 0, 0, 1, 0]
    ballots = x[36:85].reshape(7, 7)
    assert sorted(zip(*map(list, ballots.nonzero()), strict=True)) == [(0, 2), (1, 2), (2, 0), (3, 0), (6, 0)]
    assert not x[85:].any()
    wolf = state.tensor(1)
    assert wolf[:7].tolist() == [-1, 1, 0, 0, 0, 0, 0]
    assert wolf[22:29].tolist() == [0, 0, 0, 0, 0, 1, -1]  # decided on 5; 6 was proposed
    play(state, [6, 3])
    assert state.tensor(2)[85:92].tolist() == [0, 0, 0, -1, 0, 0, 0]  # saw that 3 is none


def test_vector_holds_the_last_three_rounds():
    state = deal(SEVEN, CAST)
    for _ in range(4):
        play(state, [6, 6, 0, 6])
        speak(state)
        play(state, [7, 7, 7, 7, 7, 7, 0] if state.round == 2 else [7] * 7)
        if state.votes[-1][1] == 0:
            break
    assert state.round == 3
    play(state, [6, 3, 6])
    speak(state)
    play(state, [7] * 6)
    assert state.round == 4
    x = state.tensor(6)
    assert x[36 : 36 + 49].reshape(7, 7)[6, 0] == 1  # the vote of round 2 now stands first


def test_villager_knows_no_roles_before_the_first_event():
    seen, keys = set(), set()
    for roles, _ in SEVEN.deals:
        if roles[3] == VILLAGER:
            state = deal(SEVEN, roles)
            seen.add(state.tensor(3).tobytes())
            keys.add(state.infoset(3))
    assert len(seen) == len(keys) == 1


def test_what_others_decide_is_hidden_until_all_have():
    rules, rng = Rules(codebook=BOOK), np.random.default_rng(3)

    def look(state):
        if state.player() < 0 or state.phase == TALK:
            return
        mover, others = state.player(), set(range(7)) - {state.player()}
        child = state.child(state.legal()[0])
        if child.phase != state.phase or child.player() < 0:
            return
        hears = {child.player()} if state.phase == NIGHT and state.roles[mover] == WOLF else set()
        for seat in others - hears:
            assert child.infoset(seat) == state.infoset(seat)
            assert np.array_equal(child.tensor(seat), state.tensor(seat))
        assert child.infoset(mover) != state.infoset(mover)

    for _ in range(25):
        random_game(rules, rng, look)


def test_role_of_a_speaker_does_not_leak():
    """The same code, said by different roles with different latent strategies, looks the same to all others."""
    rules = Rules(codebook=BOOK)
    one = deal(rules, (VILLAGER, SEER, WOLF, WOLF, DOCTOR, VILLAGER, VILLAGER))
    two = deal(rules, (DOCTOR, SEER, WOLF, WOLF, VILLAGER, VILLAGER, VILLAGER))
    for state, night in ((one, [1, 1, 0, 1]), (two, [1, 1, 0, 1])):
        play(state, night)
        state.play(9)
        if state.player() == CHANCE:
            state.play(1)
    for seat in (5, 6, 2, 3):
        assert one.infoset(seat) == two.infoset(seat)
        assert np.array_equal(one.tensor(seat), two.tensor(seat))


def test_codes_are_drawn_from_the_codebook_and_heard():
    rules = Rules(codebook=BOOK)
    assert rules.width == 211 + 3 * 7 * 3
    state = deal(rules, CAST)
    play(state, [6, 6, 0, 6])
    state.play(8 + 2)
    assert state.chance() == [(0, 0.2), (1, 0.3), (2, 0.5)]
    rng = np.random.default_rng(0)
    drawn = np.bincount([state.sample_chance(rng) for _ in range(4000)], minlength=3) / 4000
    assert drawn == pytest.approx([0.2, 0.3, 0.5], abs=0.03)
    state.play(2)
    heard = state.tensor(6)[211:].reshape(3, 7, 3)
    assert list(zip(*map(list, heard.nonzero()), strict=True)) == [(0, 0, 2)]
    rng = np.random.default_rng(0)
    play(state, [0] * 6, rng)
    assert state.phase == VOTE
    assert (state.talks[0][1][0], state.talks[0][0]) == (2, (2, 0, 0, 0, 0, 0, 0))


def test_a_speech_with_an_argument_names_a_seat_that_all_hear():
    rules = Rules(codebook=BOOK, stances=[[1, -1, 0], [0, 0], [0, 0], [0, 0]])
    assert rules.width == 211 + 3 * 7 * 3 + 3 * 49 + 3
    state = deal(rules, CAST)
    play(state, [6, 5, 0, 6])  # player_5 dies
    before = [state.tensor(seat) for seat in range(7)]
    state.play(8 + 1)
    assert (state.player(), state.naming) == (0, True)
    assert state.legal() == [1, 2, 3, 4, 6, 7]
    pending = state.tensor(0) - before[0]
    assert pending.nonzero()[0].tolist() == [rules.width - 3 + 1]
    assert all(np.array_equal(state.tensor(seat), before[seat]) for seat in range(1, 7))  # nobody else knows
    nobody = state.child(7)
    state.play(4)
    assert state.player() == CHANCE
    assert state.infoset(1) == nobody.infoset(1)  # until it is heard
    state.play(2)
    nobody.play(2)
    assert state.infoset(1) != nobody.infoset(1)
    heard = state.tensor(6)[rules.arguments_at :][: 3 * 49].reshape(3, 7, 7)
    assert [(*map(int, at), heard[tuple(at)]) for at in np.argwhere(heard)] == [(0, 0, 4, -1.0)]
    assert not nobody.tensor(6)[rules.arguments_at :].any()
    state.play(8 + 0)  # the other Werewolf accuses
    state.play(3)
    play(state, [0, *[8] * 4], np.random.default_rng(0))
    assert state.phase == VOTE
    assert state.talks[0][2] == (1 + 7 + 4, 1 + 3, 0, 0, 0, -1, 0)
    play(state, [3] * 6, np.random.default_rng(0))
    later = state.tensor(6)[rules.arguments_at :][: 3 * 49].reshape(3, 7, 7)
    assert (later[0, 0, 4], later[0, 1, 3]) == (-1.0, 1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        random_game(rules, rng)


def test_the_seer_names_only_what_it_saw():
    rules = Rules(stances=[[0, 0, 0], [1, -1], [0, 0], [0, 0]])
    roles = (SEER, WOLF, WOLF, DOCTOR, VILLAGER, VILLAGER, VILLAGER)
    for seen, accuse, clear in ((1, [1, 7], [7]), (4, [7], [4, 7]), (6, [7], [7])):
        state = deal(rules, roles)
        play(state, [6, 6, seen, 3])  # player_6 dies; the order is wolves, Seer, Doctor
        assert [state.child(8 + latent).legal() for latent in (0, 1)] == [accuse, clear]


def test_without_a_codebook_nothing_is_heard():
    state = deal(SEVEN, CAST)
    play(state, [6, 6, 0, 6])
    other = state.child(9)
    state.play(8)
    assert all(np.array_equal(state.tensor(seat), other.tensor(seat)) for seat in range(7))
    assert [seat for seat in range(7) if state.infoset(seat) != other.infoset(seat)] == [0]


def test_children_leave_the_parent_alone():
    rules, rng = Rules(codebook=BOOK, rewards="sla"), np.random.default_rng(4)

    def look(state):
        before = [getattr(state, name) for name in State.__slots__]
        for action in state.legal():
            random = state.child(action)
            for _ in range(5):
                if random.player() != TERMINAL:
                    random.play(random.legal()[-1])
        assert [getattr(state, name) for name in State.__slots__] == before

    for _ in range(3):
        random_game(rules, rng, look)


def test_same_generator_same_game():
    for rules in (SEVEN, FOUR, Rules(codebook=BOOK, parity="gt")):
        one, two = (random_game(rules, np.random.default_rng(7))[0] for _ in range(2))
        assert [getattr(one, name) for name in State.__slots__] == [getattr(two, name) for name in State.__slots__]


def test_scripted_players_in_numbers():
    rng = np.random.default_rng(8)
    for _ in range(20):
        state = new_game(SEVEN, rng)
        while state.player() != TERMINAL:
            chance = state.player() == CHANCE
            action = state.sample_chance(rng) if chance else number_of(PLAYERS["scripted"], state, rng)
            assert action in state.legal()
            state.play(action)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"players": 5}, "players"),
        ({"parity": "eq"}, "parity"),
        ({"rewards": "lsop"}, "lspo"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"latents": (1, 1)}, "latents"),
        ({"latents": (0, 1, 1, 1)}, "latents"),
        ({"codebook": [[[1.0]]] * 4}, "codebook"),
        ({"stances": [[0, 0, 0]] * 4}, "stances"),
        ({"stances": [[2, 0, 0], [0, 0], [0, 0], [0, 0]]}, "stances"),
        ({"codebook": [[[0.5, 0.4]] * k for k in (3, 2, 2, 2)]}, "codebook"),
    ],
)
def test_wrong_arguments(kwargs, word):
    with pytest.raises(ConfigError, match=word):
        Rules(**kwargs)
