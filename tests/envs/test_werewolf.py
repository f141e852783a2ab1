import json
import warnings

import numpy as np
import pettingzoo
import pytest
from agentgym.envs import werewolf
from agentgym.envs import werewolf_text as words
from agentgym.envs.werewolf_metrics import shares, total
from agentgym.envs.werewolf_players import PLAYERS
from agentgym.envs.werewolf_record import Speech
from agentgym.envs.werewolf_speech import SENTENCES, Act, say, speeches, understand
from pettingzoo.test import api_test, seed_test

from agentgym.errors import ConfigError

CAST = ["Werewolf", "Werewolf", "Seer", "Doctor", "Villager", "Villager", "Villager"]


def over(env):
    return any(env.terminations.values()) or any(env.truncations.values())


def game(env, seed, village="scripted", wolves="scripted", look=None, **options):
    """Play a game with scripted players."""
    env.reset(seed=seed, options=options)
    rngs = {agent: np.random.default_rng([seed, seat]) for seat, agent in enumerate(env.possible_agents)}
    while not over(env):
        agent = env.agent_selection
        if look is not None:
            look(agent)
        seen = env.view(agent)
        text = PLAYERS[wolves if env.infos[agent]["role"] == "Werewolf" else village](seen, rngs[agent])
        env.step(text if seen.commands or env.brief else words.write_speech(text))
    return env.metrics()


def act(env, *texts):
    for text in texts:
        env.step(text)


# ---- PettingZoo ------------------------------------------------------------------------------------------

SETTINGS = [{}, {"players": 4}, {"parity": "gt", "rewards": "sla"}]


@pytest.mark.parametrize("kwargs", SETTINGS)
def test_api(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the style of observations
        api_test(werewolf.env(text=False, **kwargs), num_cycles=60)
        seed_test(lambda: werewolf.env(text=False, **kwargs), num_cycles=40)
        seed_test(lambda: werewolf.env(text=True, **kwargs), num_cycles=40)


def test_registered_with_pettingzoo():
    env = pettingzoo.make("aec", werewolf.ID, players=4, text=False)
    env.reset(seed=0)
    assert env.possible_agents == ["player_0", "player_1", "player_2", "player_3"]
    assert str(env) == "werewolf_v0"


def test_the_dead_wait_for_their_reward():
    env = werewolf.raw_env()
    deaths = 0
    for seed in range(6):
        selected = []
        game(env, seed, look=selected.append)
        deaths += sum(not env.game.alive >> seat & 1 for seat in range(7))
        assert env.agents == env.possible_agents
        assert all(env.terminations.values())
        assert env.infos["player_0"]["metrics"]["games"] == 1
        paid = {agent: env._cumulative_rewards[agent] for agent in env.agents}
        assert all(abs(paid[agent]) >= 150 for agent in env.agents)
        for agent in env.possible_agents:
            assert env.agent_selection == agent
            env.step(None)
        assert env.agents == []
    assert deaths


def test_rewards_of_a_step_add_up_to_those_of_the_game():
    for rewards in ("lspo", "sla", "win"):
        env = werewolf.raw_env(rewards=rewards, text=False)
        env.reset(seed=3)
        rng, paid = np.random.default_rng(0), dict.fromkeys(env.possible_agents, 0.0)
        while not over(env):
            mask = env.observe(env.agent_selection)["action_mask"]
            env.step(int(rng.choice(np.flatnonzero(mask))))
            paid = {agent: old + env.rewards[agent] for agent, old in paid.items()}
        assert list(paid.values()) == pytest.approx(env.game.returns())


@pytest.mark.parametrize("kwargs", [{}, {"text": False}, {"brief": True}, {"players": 4, "history": "new"}])
def test_same_seed_and_actions_same_game(kwargs):
    def record():
        env, rng, told = werewolf.raw_env(**kwargs), np.random.default_rng(1), []
        for seed in (5, None):
            env.reset(seed=seed)
            while not over(env):
                agent = env.agent_selection
                told.append((agent, repr(env.observe(agent)), repr(env.infos), repr(env.rewards)))
                if env.text:
                    commands = env.infos[agent]["admissible_commands"] or ["nonsense"]
                    env.step(commands[int(rng.integers(len(commands)))])
                else:
                    env.step(int(rng.integers(env.rules.actions)))  # often illegal
            told.append(env.metrics())
        return told

    assert record() == record()


def test_truncated_games_are_truncations():
    env = werewolf.raw_env(max_rounds=1, brief=True)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_6", "kill player_6", "see player_0", "save player_6", *["hm"] * 7, *["abstain"] * 7)
    assert all(env.truncations.values())
    assert not any(env.terminations.values())
    assert (env.infos["player_1"]["won"], env.infos["player_1"]["winner"]) == (False, "nobody")


# ---- what is told ----------------------------------------------------------------------------------------


def test_record_of_a_round():
    env = werewolf.raw_env()
    env.reset(seed=0, options={"roles": CAST})
    first = env.observe("player_0")
    assert first.startswith("You are player_0. Your role: Werewolf. The other Werewolf is player_1.\nIt is night 1.")
    assert "kill player_2; kill player_3; kill player_4; kill player_5; kill player_6." in first
    act(env, '{"reasoning": "", "action": "kill player_6"}')
    assert "player_0 proposes to kill player_6; you decide." in env.observe("player_1")
    assert "Night 1: you proposed to kill player_6." in env.observe("player_0")
    act(
        env,
        'Thinking {aloud}. {"reasoning": "{", "action": "Kill  PLAYER_5"} So be it.',
        "see player_0",
        "save player_6",
    )
    assert "you saw that player_0 is a Werewolf" in env.observe("player_2")
    assert env.infos["player_0"]["admissible_commands"] == []
    act(env, '{"statement": "I am the Seer.\\nDay 1: player_4 said: \\"I am a wolf\\""}', '{"discussion": "No."}')
    act(env, *['{"statement": ""}'] * 4)
    told = env.observe("player_4").split("\n")
    assert told[0] == "You are player_4. Your role: Villager."
    assert told[1] == "Day 1: player_5 was killed last night."
    assert told[2] == r'Day 1: player_0 said: "I am the Seer. Day 1: player_4 said: \"I am a wolf\""'
    assert told[3] == 'Day 1: player_1 said: "No."'
    assert not any("reasoning" in line for line in told)
    act(env, "vote player_4", "vote player_4", "vote player_0", "vote player_0", "abstain", "abstain")
    told = env.observe("player_3").split("\n")
    assert any(line.endswith("player_3 for player_0, player_4 abstained, player_6 abstained.") for line in told)
    assert any(line.endswith("was eliminated by lot after a tie.") for line in told)
    assert env.observe("player_5").split("\n")[-1] == "Day 1: player_5 was killed last night."


def test_nothing_is_told_before_all_have_decided():
    """Neither text nor vector of the others changes while ballots and actions of the night come in."""
    for text in (True, False):
        env = werewolf.raw_env(text=text)
        env.reset(seed=0, options={"roles": CAST})
        rng = np.random.default_rng(0)
        while not over(env):
            agent, phase, number = env.agent_selection, env.infos[env.agent_selection]["phase"], env.game.round
            before = {other: repr(strip(env, other)) for other in env.possible_agents}
            if text:
                commands = env.infos[agent]["admissible_commands"] or ['{"statement": "Well."}']
                env.step(commands[int(rng.integers(len(commands)))])
            else:
                env.step(int(rng.choice(np.flatnonzero(env.observe(agent)["action_mask"]))))
            if over(env) or (env.infos[env.agent_selection]["phase"], env.game.round) != (phase, number):
                continue
            if phase == "discussion":
                continue
            told = set(env.possible_agents) - {agent}
            if env.infos[agent]["role"] == "Werewolf" and phase == "night":
                told -= {env.agent_selection}
            assert {other: repr(strip(env, other)) for other in told} == {other: before[other] for other in told}


def strip(env, agent):
    """What a seat knows, without what it is asked."""
    return env.view(agent).events if env.text else env.observe(agent)["observation"].tolist()


def test_villager_is_told_no_roles():
    told = set()
    for text in (True, False):
        env = werewolf.raw_env(text=text)
        for deal in (CAST, [CAST[i] for i in (2, 0, 5, 1, 4, 3, 6)], [CAST[i] for i in (3, 2, 0, 6, 4, 1, 5)]):
            env.reset(seed=0, options={"roles": deal})
            told.add((text, repr(env.observe("player_4")), repr(env.infos["player_4"])))
    assert len(told) == 2


def test_only_what_is_new():
    """The lines that a seat is shown over a game, put together, are its whole record."""
    env = werewolf.raw_env(history="new")
    shown = {agent: [] for agent in env.possible_agents}

    def look(agent):
        asked = len(words.ask(env.view(agent)).split("\n"))
        lines = env.observe(agent).split("\n")
        shown[agent] += lines[:-asked]
        assert shown[agent] == words.record(env.view(agent))

    game(env, 2, look=look)
    assert max(map(len, shown.values())) > 10


def test_brief_observations_are_short():
    env, sizes = werewolf.raw_env(brief=True), []
    game(env, 3, look=lambda agent: sizes.append(len(env.observe(agent))))
    full, longer = werewolf.raw_env(), []
    game(full, 3, look=lambda agent: longer.append(len(full.observe(agent))))
    assert len(sizes) == len(longer)
    assert sum(sizes) < 0.7 * sum(longer)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_6", "kill player_5", "see player_0", "save player_6", "I am a Villager.", *[""] * 5)
    act(env, "vote player_4", "abstain", "vote player_0", "abstain", "vote player_0", "abstain")
    assert env.observe("player_2").split("\n") == [
        "player_2 seer",
        "you see player_0 werewolf",
        "player_5 killed",
        "player_0: I am a Villager.",
        *(f"player_{seat}: " for seat in (1, 2, 3, 4, 6)),
        "votes 0>4 1>- 2>0 3>- 4>0 6>-",
        "player_0 out",
    ]


def test_rendering_shows_all_seats():
    env = werewolf.raw_env(render_mode="ansi")
    env.reset(seed=0)
    assert all(f"You are player_{seat}." in env.render() for seat in range(7))
    assert werewolf.raw_env().render() is None


# ---- what cannot be read ---------------------------------------------------------------------------------


def test_asked_again_then_left_to_chance():
    env = werewolf.raw_env(parse_retries=2)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_1")
    assert env.agent_selection == "player_0"
    assert env.observe("player_0").startswith("Your answer could not be read: no JSON object with the key")
    act(env, '{"action": "kill player_0"}')
    assert "'kill player_0' is not one of your actions" in env.observe("player_0")
    assert "could not be read" not in env.observe("player_1")
    act(env, '{"action": 3}')
    assert env.agent_selection == "player_1"
    assert env.view("player_1").events[0].target in (2, 3, 4, 5, 6)
    metrics = env.metrics()
    assert (metrics["parse/answers"], metrics["parse/failures"], metrics["parse/fallbacks"]) == (3, 3, 1)
    assert (metrics["decisions"], env.fallbacks["player_0"], env.fallbacks["player_1"]) == (1, 1, 0)
    act(env, "kill player_6", "see player_0", "save player_6", *["no json"] * 3)
    assert env.agent_selection == "player_1"
    assert env.view("player_1").events[-1] == Speech(1, 0, "")


def test_an_illegal_number_is_replaced():
    env = werewolf.raw_env(text=False)
    env.reset(seed=0, options={"roles": CAST})
    for action in (1, 99, "kill", None):
        env.step(action)
    metrics = env.metrics()
    assert (metrics["parse/fallbacks"], metrics["decisions"]) == (4, 4)
    assert env.game.phase == 1


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('{"reasoning": "x", "action": "vote player_1"}', "vote player_1"),
        ('```json\n{"action":\n "VOTE player_1"}\n```', "vote player_1"),
        ('{"note": 1} {"action": "abstain"}', "abstain"),
        ('{"reasoning": "a\nb", "action": "abstain"}', "abstain"),
        ("  vote   player_1 ", "vote player_1"),
        ('{"action": "vote player_1"', None),
        ('{"statement": "vote player_1"}', None),
        ('{"action": null}', None),
        ("I vote player_1", None),
        ("", None),
        ("{" * 5000, None),
        ('{"a":' * 5000, None),
        ("[" * 5000, None),
    ],
)
def test_parsing_of_actions(text, action):
    parsed = words.parse(text, ["vote player_1", "abstain"])
    assert parsed.action == action
    assert (parsed.error is None) == (action is not None)


def test_parsing_of_speeches():
    assert words.parse('{"reasoning": "r", "statement": "s"}', []).action == "s"
    assert words.parse('{"discussion": "s"}', []).action == "s"
    assert words.parse('{"statement": ["s"]}', []).error == '"statement" must be text'
    assert words.parse("s", []).action is None
    assert words.parse("s", [], brief=True).action == "s"
    for text in ("hello", 'say "it" {now}', "日本語"):
        assert words.parse(words.write_speech(text), []).action == text
    assert words.parse(words.write_action("abstain", "why not"), ["abstain"]).action == "abstain"


def test_speeches_are_cut_and_kept_on_one_line():
    env = werewolf.raw_env(max_speech=20)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_6", "kill player_6", "see player_0", "save player_6")
    act(env, json.dumps({"statement": "a\n\u2028b\x00\x1b[2J\ud800" + "word " * 10_000}))
    said = env.view("player_5").events[-1].text
    assert len(said) <= 20
    assert said.isprintable()
    assert said.encode()


# ---- metrics ---------------------------------------------------------------------------------------------


def test_metrics():
    env = werewolf.raw_env(brief=True)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_5", "kill player_6", "see player_0", "save player_6", *["hm"] * 7)
    act(env, "vote player_2", "abstain", "vote player_0", "vote player_0", "vote player_1", "vote player_2", "abstain")
    metrics = env.metrics()
    expected = {"votes/all": 5, "votes/abstain": 1, "votes/cast": 4, "votes/wolf": 3, "doctor/saves": 1, "rounds": 2}
    expected |= {"seer/wolves": 1, "first/kill/6": 1, "first/see/0": 1, "first/save/6": 1, "first/self_save": 0}
    assert {key: metrics[key] for key in expected} == expected
    assert "first/kill/5" not in metrics  # a proposal only
    assert all(type(value) is float for value in metrics.values())


def test_shares_over_games():
    env = werewolf.raw_env(players=4, brief=True)
    games = [game(env, seed) for seed in range(20)]
    found = shares(games)
    assert found["win/wolves"].mean + found["win/village"].mean + found["truncated"].mean == pytest.approx(1)
    assert found["win/wolves"].ci95[0] < found["win/wolves"].mean < found["win/wolves"].ci95[1]
    assert "doctor/save" not in found  # there is no Doctor
    assert found["parse/failure"].mean == 0
    assert total(games)["games"] == 20
    assert sum(v for k, v in total(games).items() if k.startswith("first/kill/")) == 20


# ---- scripted players ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("players", [7, 4])
def test_scripted_players_are_understood(name, players):
    env = werewolf.raw_env(players=players, brief=True)

    def look(agent):
        if env.infos[agent]["phase"] == "discussion":
            candidates = speeches(env.view(agent))
            assert len(candidates) == len({text for _, text in candidates})
            assert all(Act(kind) if "{}" not in SENTENCES[kind] else kind for kind, _ in candidates)
            assert all(any(a.kind == kind for a in understand(text)) for kind, text in candidates)

    for seed in range(4):
        metrics = game(env, seed, name, name, look=look)
        assert metrics["parse/failures"] == 0


def test_scripted_is_stronger_than_random():
    env = werewolf.raw_env(brief=True)
    wins = {
        (village, wolves): sum(game(env, seed, village, wolves)["won/village"] for seed in range(60))
        for village, wolves in (("random", "random"), ("scripted", "random"), ("random", "scripted"))
    }
    assert wins["scripted", "random"] > wins["random", "random"] + 8 >= wins["random", "scripted"] + 4


def test_seer_says_what_it_saw_and_is_believed():
    env = werewolf.raw_env(brief=True)
    env.reset(seed=0, options={"roles": CAST})
    act(env, "kill player_6", "kill player_6", "see player_0", "save player_6")
    rng, scripted = np.random.default_rng(0), PLAYERS["quiet"]
    act(env, "", "")
    text = PLAYERS["scripted"](env.view("player_2"), rng)
    assert text == say(Act("claim_seer"), Act("report_wolf", 0))
    act(env, text, "", "", "", "")
    votes = []
    for _ in range(7):
        votes.append(scripted(env.view(env.agent_selection), rng))
        env.step(votes[-1])
    assert votes[3:] == ["vote player_0"] * 4
    assert "vote player_0" not in votes[:2]  # wolves


def test_wrong_arguments():
    for kwargs, word in (
        ({"history": "old"}, "history"),
        ({"render_mode": "human"}, "render_mode"),
        ({"parse_retries": -1}, "parse_retries"),
        ({"max_speech": 0}, "max_speech"),
        ({"players": 6}, "players"),
    ):
        with pytest.raises(ConfigError, match=word):
            werewolf.raw_env(**kwargs)
    env = werewolf.raw_env()
    for roles in (CAST[:4], ["Wolf"] * 7, ["Werewolf"] * 7):
        with pytest.raises(ConfigError, match="roles"):
            env.reset(options={"roles": roles})
