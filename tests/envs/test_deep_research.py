"""DeepResearch: its tools, its end, and 2048 rounds whose prompts do not grow and depend on the workspace alone."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from agentgym.envs import deep_research
from agentgym.envs.deep_research import DeepResearchEnv
from agentgym.envs.retrieval import SearchError, SearchTimeout
from gymnasium.error import ResetNeeded

import agentgym  # noqa: F401
from agentgym.context import INITIAL, LAST, LIMIT, REGULAR, Workspace
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, SandboxError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy, ScriptedPolicy
from agentgym.rollout import Rollout, RolloutConfig, group_tasks
from agentgym.rounds import read_round, write_round
from agentgym.tool_calls import Call, canonical
from agentgym.types import Message, Status

ID, TINY = "agentgym/DeepResearch-v0", {"corpus": "tiny", "hops": 3}
ROLLOUT = {"max_new_tokens": 500, "context_limit": 10**6, "retries": 0, "context": "workspace"}


@pytest.fixture
def env():
    made = DeepResearchEnv(**TINY)
    yield made
    made.close()


def call(name, **arguments):
    return canonical([Call(name, arguments)])


def search(*queries):
    return call("search", query=list(queries))


def names(env):
    return [tool["function"]["name"] for tool in env.tools]


# ---- tools ----------------------------------------------------------------------------------------------------


def test_search_and_visit(env):
    env.reset(seed=1)
    said, reward, terminated, truncated, info = env.step(search("capital of Norway"))
    assert "tiny:Norway#capital" in said
    assert "The capital of Norway is Oslo." in said
    assert (reward, terminated, truncated, info["searches"], info["visits"]) == (0.0, False, False, 1, 0)
    assert [(use.name, use.status) for use in env.calls] == [("search", "ok")]
    page = env.step(call("visit", url="tiny:Norway#capital"))[0]
    assert page.startswith("Norway\n\nThe capital of Norway is Oslo.")
    assert "The currency code of Norway is NOK." in page
    assert env.step(call("visit", url="tiny:Atlantis"))[0] == "There is no page tiny:Atlantis"
    assert env.calls[0].name == "visit"
    two = env.step(f"[{search('Oslo')}, {call('visit', url='tiny:Norway')}]")[0]
    assert two.startswith("[call 1 of 2: search]\n")
    assert "\n[call 2 of 2: visit]\nNorway\n" in two
    assert env.step(search("a", "b", "c", "d"))[4]["searches"] == 5
    assert env.step(call("search", query="Oslo"))[4]["searches"] == 6


@pytest.mark.parametrize(
    ("action", "wrong"),
    [
        ("go north", "no tool call in the answer"),
        ("", "no tool call in the answer"),
        ("<answer> </answer>", "the answer is empty"),
        (f"<tool_call>{search('a')}</tool_call><answer>b</answer>", "a tool call and an answer"),
        (call("google", query=["a"]), "there is no tool 'google'; the tools are search, visit"),
        (call("python", code="1"), "there is no tool 'python'"),
        (call("search"), "search takes the argument query and no other"),
        (call("search", query=["a"], k=5), "search takes the argument query and no other"),
        (call("search", query=[]), "must be a text or a list of texts"),
        (call("search", query=["a", 1]), "must be a text or a list of texts"),
        (call("search", query=" "), "must be a text or a list of texts"),
        (call("visit", url=["tiny:Norway"]), "the argument url of visit must be a text"),
    ],
)
def test_what_cannot_be_done_is_said_and_costs_a_round(env, action, wrong):
    env.reset(seed=1)
    said, reward, terminated, truncated, info = env.step(action)
    assert said.startswith("[error: ")
    assert wrong in said
    assert (reward, terminated, truncated, info["searches"]) == (0.0, False, False, 0)


def test_an_observation_is_cut():
    env = DeepResearchEnv(**TINY, max_output=256)
    env.reset(seed=1)
    said = env.step(search("Norway", "Sweden", "Oslo"))[0]
    assert said[:256] == DeepResearchEnv._show(env, "Norway", env._engine.search("Norway", 5))[:256]
    assert said[256:].startswith("\n[cut: ")
    assert len(said) < 300
    env.close()


def test_a_search_engine_that_fails_is_an_error_and_no_answer(env):
    class Slow:
        def search(self, query, k):
            raise SearchTimeout("too slow")

        def close(self):
            pass

    env.reset(seed=1)
    env._engine = Slow()
    with pytest.raises(SearchError, match="too slow"):
        env.step(search("Norway"))


def test_python_is_there_if_the_task_asks_for_it(bubblewrap):
    env = DeepResearchEnv(**TINY, python=True, backend="bubblewrap")
    assert names(env) == ["search", "visit", "python"]
    env.reset(seed=1)
    assert env._box is None
    env.step(search("Norway"))
    assert env._box is None
    assert env.step(call("python", code="x = 6 * 7"))[0] == "[no output]"
    assert env.step(call("python", code="print(x)"))[0] == "42"
    assert [use.name for use in env.calls] == ["python"]
    assert "needs the argument code" in env.step(call("python"))[0]
    env.reset(seed=2)
    assert "NameError" in env.step(call("python", code="x"))[0]
    box = env._box
    env.close()
    assert not box.alive


def test_a_box_that_fails_is_an_error_of_the_sandbox(bubblewrap):
    env = DeepResearchEnv(**TINY, python=True, backend="bubblewrap")
    env.reset(seed=1)
    env.step(call("python", code="1"))
    env._box.close()
    with pytest.raises(SandboxError):
        env.step(call("python", code="1"))
    assert env._box is None
    env.reset(seed=1)
    assert env.step(call("python", code="1"))[0] == "1"
    env.close()


def test_without_python_no_sandbox_is_looked_for(monkeypatch):
    monkeypatch.setattr(deep_research, "choose", lambda backend: pytest.fail("a sandbox was looked for"))
    env = DeepResearchEnv(**TINY)
    assert names(env) == ["search", "visit"]
    env.close()


# ---- answers --------------------------------------------------------------------------------------------------


def test_an_answer_ends_the_episode(env):
    _, info = env.reset(seed=1)
    right = info["answers"][0]
    said, reward, terminated, truncated, info = env.step(f"<report>r</report><answer>{right.upper()}.</answer>")
    assert (said, reward, terminated, truncated) == ("The answer was taken.", 1.0, True, False)
    assert (info["score"], info["success"], info["em"], info["f1"]) == (1.0, True, True, 1.0)
    with pytest.raises(ResetNeeded):
        env.step(search("x"))
    env.reset(seed=1)
    _, reward, terminated, _, info = env.step("<answer>Atlantis</answer>")
    assert (reward, terminated, info["success"]) == (0.0, True, False)


def test_the_judge_scores():
    env = DeepResearchEnv(**TINY, judge="f1")
    _, info = env.reset(seed=1)
    _, reward, _, _, info = env.step(f"<answer>It is {info['answers'][0]}</answer>")
    assert 0 < reward == info["score"] < 1
    assert not info["success"]
    env.close()


def test_the_last_round_without_an_answer_is_worth_nothing():
    env = DeepResearchEnv(**TINY, max_rounds=2)
    env.reset(seed=1)
    assert env.step(search("x"))[1:4] == (0.0, False, False)
    assert env.step(search("y"))[1:4] == (0.0, False, True)
    env.close()


@pytest.mark.parametrize("brief", [False, True])
def test_the_expert_writes_whole_replies_and_follows_its_plan(brief):
    env = DeepResearchEnv(**TINY, brief=brief, expert=True)
    _, info = env.reset(seed=5)
    for turn in range(4):
        report, action = read_round(info["expert_action"])
        assert report.count("\n") == (0 if brief else turn)
        assert isinstance(action, Call) == (turn < 3)
        stays = env.step(search("something else"))[4]["expert_action"]
        assert stays == info["expert_action"]
        _, reward, terminated, _, info = env.step(info["expert_action"])
    assert (reward, terminated, info["expert_action"]) == (1.0, True, None)
    env.close()


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"max_rounds": 0}, "max_rounds is 0: it must be 1 to 2048"),
        ({"max_rounds": 2049}, "max_rounds is 2049"),
        ({"max_output": 255}, "max_output is 255"),
        ({"judge": "mine"}, "unknown judge"),
        ({"hops": 9}, "hops is 9"),
        ({"retriever": "google"}, "unknown retriever"),
        ({"python": True, "backend": "dokcer"}, "unknown sandbox backend 'dokcer'"),
    ],
)
def test_wrong_arguments_are_named(settings, wrong):
    with pytest.raises(ConfigError, match=wrong):
        gym.make(ID, **{**TINY, **settings})


# ---- rounds ---------------------------------------------------------------------------------------------------


def test_the_expert_solves_it_in_a_workspace_and_react_in_a_growing_context():
    settings = {**ROLLOUT, "max_turns": 6}
    with EnvPool(ID, TINY) as pool:
        workspace, played = evaluate(pool, ExpertPolicy(), RolloutConfig(**settings), 8, 0)
        settings |= {"codec": "react", "context": "append"}
        react, also = evaluate(pool, ExpertPolicy(), RolloutConfig(**settings), 8, 0)
    assert workspace.success.mean == react.success.mean == 1.0
    assert all("<report>" in u.text for t in played for u in t.turns)
    assert all("<report>" not in u.text for t in also for u in t.turns)
    assert all(len(t.segments) == len(t.turns) for t in played)


def test_a_reply_out_of_format_ends_the_episode():
    settings = RolloutConfig(**{**ROLLOUT, "parse_limit": 1, "codec": "report"}, max_turns=6)

    class Sloppy(ExpertPolicy):
        def open(self):
            session = super().open()
            generate = session.generate

            async def cut(request):
                request.encode_action = lambda action: self.renderer.encode_reply(action.partition("</report>")[2])
                return await generate(request)

            session.generate = cut
            return session

    with EnvPool(ID, TINY) as pool:
        [group] = Rollout(pool, Sloppy(), settings).collect(group_tasks(0, 0, 1, 2))
    for t in group.trajectories:
        assert (t.status, t.episode_return, len(t.turns)) == (Status.PARSE_LIMIT, 0.0, 1)
        assert "exactly one <report>" in t.turns[0].parse_error


class Wanderer(ScriptedPolicy):
    """Searches and reads for ever, with reports of any length up to what it is told; answers in the last round."""

    name = "wanderer"
    words = ("Norway", "Oslo", "border", "capital", "currency", "Sweden", "CPH", "tiny")

    def __init__(self, rounds, longest):
        super().__init__()
        self.rounds, self.longest = rounds, longest

    def act(self, info, turn, rng):
        text = " ".join(rng.choice(self.words, int(rng.integers(1, 40))))
        report = (text * 200)[: 1 + int(rng.integers(self.longest))].strip()
        if turn == self.rounds - 1:
            return write_round(report, "Oslo")
        if turn % 3:
            return write_round(report, Call("search", {"query": [text]}))
        return write_round(report, Call("visit", {"url": f"tiny:{rng.choice(self.words)}"}))


def test_2048_rounds_at_constant_prompt_size():
    rounds, longest, most = 2048, 300, 600
    settings = RolloutConfig(**ROLLOUT, max_turns=rounds, episode_timeout=600.0)
    with EnvPool(ID, {**TINY, "max_rounds": rounds, "max_output": most}) as pool:
        policy = Wanderer(rounds, longest)
        [group] = Rollout(pool, policy, settings).collect(group_tasks(0, 0, 1, 1))
    [t] = group.trajectories
    assert (len(t.turns), len(t.segments), t.status) == (rounds, rounds, Status.DONE)

    # the prompt is the whole row up to the reply, and no longer in the second half than in the first
    assert [u.segment for u in t.turns] == list(range(rounds))
    lengths = np.array([u.start for u in t.turns])
    texts = [policy.renderer.tokenizer.decode(t.segments[k].ids[: t.turns[k].start]) for k in range(rounds)]
    system, question = (m["content"] for m in t.messages[:2])
    calls = max(len(write_round("", read_round(u.text)[1])) for u in t.turns)
    assert lengths[1:].max() <= len(system) + len(question) + longest + most + calls + len(REGULAR) + 250
    halves = lengths[1 : rounds // 2], lengths[rounds // 2 :]
    assert abs(halves[0].mean() / halves[1].mean() - 1) < 0.1
    assert halves[1].max() <= 1.05 * halves[0].max()

    # it is a function of system message, question, last report, last action, last response, and of nothing else
    render, context = policy.renderer.tokenizer.render, Workspace(policy.renderer.escape, 99)
    for k in (*range(1, rounds - 1, 97), rounds - 2):
        last = Message(role="assistant", content=f"<think>some other thought</think>{t.turns[k - 1].text}")
        response = Message(role="user", content=t.messages[2 * k + 1]["content"])
        assert texts[k] == render(context.view([*t.messages[:2], last, response]))

    # the variants, and no tools in the last round
    assert [INITIAL in text for text in texts[:3]] == [True, False, False]
    assert all(REGULAR in text for text in texts[1:-1])
    assert LAST in texts[-1]
    assert "<tools>" in texts[-2]
    assert "<tools>" not in texts[-1]
    assert texts[-1].count("search") < texts[-2].count("search")


def test_a_report_is_cut_before_the_next_round_sees_it():
    long = write_round("x" * (2 * LIMIT), Call("search", {"query": ["Norway"]}))
    settings = RolloutConfig(**{**ROLLOUT, "max_new_tokens": 10**5}, max_turns=3)
    with EnvPool(ID, TINY) as pool:
        [group] = Rollout(pool, CannedPolicy([long]), settings).collect(group_tasks(0, 0, 1, 1))
    [t] = group.trajectories
    assert t.turns[0].stop - t.turns[0].start > 2 * LIMIT
    assert LIMIT < t.turns[1].start < LIMIT + 8192
    assert t.turns[1].start == pytest.approx(t.turns[2].start, abs=2000)


def test_an_endpoint_is_offered_no_tools_in_the_last_round():
    offered = []

    class Listening(ExpertPolicy):
        def open(self):
            session = super().open()
            generate = session.generate

            async def listen(request):
                offered.append([tool["function"]["name"] for tool in request.tools])
                return await generate(request)

            session.generate = listen
            return session

    with EnvPool(ID, TINY) as pool:
        Rollout(pool, Listening(), RolloutConfig(**ROLLOUT, max_turns=3)).collect(group_tasks(0, 0, 1, 1))
    assert offered == [["search", "visit"], ["search", "visit"], []]


def test_questions_do_not_depend_on_the_tools():
    asked = []
    for settings in ({}, {"brief": True}, {"judge": "f1", "max_rounds": 2048}):
        env = gym.make(ID, **TINY, **settings)
        asked.append([env.reset(seed=seed)[0] for seed in range(5)])
        env.close()
    assert asked[0] == asked[1] == asked[2]
