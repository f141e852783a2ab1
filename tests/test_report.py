"""The report page: complete, self-contained, safe with untrusted text, and quick to open."""

import json
import re
import subprocess
import sys
from html import unescape

import helpers_envs
import numpy as np
import pytest
from run_folder import PIECES, make_run

from agentgym import cli, plots, report_data, seeding, store
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, MissingDependency
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import CannedPolicy
from agentgym.renderer import ByteTokenizer
from agentgym.report import write_report
from agentgym.rollout import RolloutConfig
from agentgym.types import Edit, Status, ToolUse, Trajectory, Turn

PAYLOAD = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    "<!--<script>{{data}} 走廊 \ud83d"
)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "coin-grpo")


def embedded(page):
    """The JSON of every data tag, by id."""
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def without_data(page):
    return re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)


def unpacked(values):
    if isinstance(values, list):
        return values
    return [v for v, n in zip(values["runs"][::2], values["runs"][1::2], strict=True) for _ in range(n)]


def test_the_page_refers_to_nothing_outside(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = without_data(path.read_text())
    for outside in ("http:", "https:", "//cdn", " src=", "@import", "url(", "fetch(", "XMLHttp", "import("):
        assert outside not in page
    for sink in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "srcdoc"):
        assert sink not in page
    assert "default-src 'none'" in page
    assert "{{" not in page


def test_every_trajectory_is_in_the_page(run):
    data = embedded(write_report(run).read_text())
    index = data["index"]
    stored = [t for name in index["files"] for t in store.read(run / "trajectories" / f"{name}.jsonl")]
    assert index["total"] == len(stored) == len(data) - 1 == 64
    assert index["list"]["return"] == [t.episode_return for t in stored]
    assert index["list"]["success"] == [t.success for t in stored]
    assert any(len(t.segments) > 1 for t in stored)
    for number, trajectory in enumerate(stored):
        detail = data[f"t{number}"]
        assert [t["text"] for t in detail["turns"]] == [t.text for t in trajectory.turns]
        assert [t["action"] for t in detail["turns"]] == [t.action for t in trajectory.turns]
        ids = []
        for shown, segment in zip(detail["segments"], trajectory.segments, strict=True):
            ids = ids[: shown["kept"]] + shown["ids"]
            assert ids == segment.ids
            assert unpacked(shown["mask"]) == segment.mask
            own = [k for k, bit in enumerate(segment.mask) if bit]
            assert shown["logps"] == pytest.approx([segment.logps[k] for k in own], rel=1e-3)
            assert unpacked(shown["versions"]) == [segment.versions[k] for k in own]
            if segment.advantages is not None:
                expected = [segment.advantages[k] for k in own]
                assert unpacked(shown["advantages"]) == pytest.approx(expected, rel=1e-3)
            assert (shown["edit"] is None) == (segment.edit is None)


def test_tokens_are_embedded_once_and_only_those_in_use(run):
    (run / "tokens.json").write_text(json.dumps([*PIECES, "never used"]))
    tokens = embedded(write_report(run).read_text())["index"]["tokens"]
    assert "never used" not in tokens.values()
    assert tokens[str(PIECES.index("The"))] == "The"
    (run / "tokens.json").unlink()
    assert embedded(write_report(run).read_text())["index"]["tokens"] is None


def test_optional_files_may_be_absent_and_numbers_may_be_odd(run):
    (run / "evaluation.json").unlink()
    (run / "tokens.json").unlink()
    (run / "config.yaml").write_text("just: [a, broken\n  yaml")
    odd = Trajectory("Env-v0", 1, info={"score": float("nan"), "deep": [float("inf")]})
    odd.turns = [Turn("o", 0, 0, 0, 0, "t", "a", reward=float("nan"))]
    store.write(run / "trajectories" / "odd.jsonl", [odd])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "reward/mean": NaN, "note": "text", "flag": true}\n{"step": 61, "rew')
    index = embedded(write_report(run).read_text())["index"]
    assert index["evaluation"] is None
    assert {c["name"] for c in index["curves"]}.isdisjoint({"note", "flag", "eval/success_lo"})
    assert index["list"]["return"].count(None) == 1
    assert ["env", "Env-v0, agentgym/TextWorld-Coin-v0"] in index["facts"]


def test_an_evaluation_may_have_one_side(run):
    (run / "evaluation.json").write_text('{"after": {"success": {"mean": 0.5, "ci95": [0.4, NaN]}}}')
    found = embedded(write_report(run).read_text())["index"]["evaluation"]
    assert found == [{"name": "success", "before": None, "after": [0.5, 0.4, None]}]


def test_larger_runs_share_the_page_between_the_files(tmp_path):
    run = make_run(tmp_path / "run", count=256)
    store.write(run / "trajectories" / "few.jsonl", store.read(run / "trajectories" / "expert.jsonl")[:3])
    index = embedded(write_report(run, limit=83).read_text())["index"]
    shown = [index["list"]["file"].count(i) for i in range(9)]
    assert index["total"] == 259
    assert shown == [10 if name != "few" else 3 for name in index["files"]]
    assert ["trajectories", "259 (83 in this page)"] in index["facts"]


def test_a_resumed_run_keeps_the_last_value_of_a_step(tmp_path):
    rows = [{"step": s, "reward/mean": v} for s, v in [(0, 1), (1, 2), (2, 3), (1, 20), (2, 30)]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report_data.read_metrics(tmp_path) == {"reward/mean": {0: 1, 1: 20, 2: 30}}


def test_long_curves_are_thinned_but_keep_their_peaks():
    curve = {float(step): 0.0 for step in range(100_000)}
    curve[51_234.0] = 9.0
    drawn = report_data.curve("reward/mean", {"reward/mean": curve})
    assert len(drawn["x"]) <= 1002
    assert (drawn["x"][0], drawn["x"][-1], max(drawn["y"])) == (0, 99_999, 9)


def test_missing_and_empty_parts_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no run folder .*nothing"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, config\.yaml, trajectories/\*\.jsonl; expected"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"run is not a complete run folder: missing or empty: metrics\.jsonl;"):
        write_report(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "note": "none"}\n')
    with pytest.raises(ConfigError, match="holds no metric"):
        write_report(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 0, "a/b": 1}\n{oops\n{"step": 1}\n', r"metrics\.jsonl, line 2"),
        ("metrics.jsonl", '{"loss": 0}\n{"step": 1}\n', "line 1: KeyError"),
        ("evaluation.json", '{"before": {"success": 0.5}}', r"evaluation\.json.*ci95"),
        ("tokens.json", '{"a": 1}', r"tokens\.json: expected a JSON list"),
        ("trajectories/step_00000.jsonl", "{}\n", r"step_00000\.jsonl, line 1"),
    ],
)
def test_damaged_parts_are_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        write_report(run)


def test_a_run_without_any_trajectory_is_refused(run):
    for path in (run / "trajectories").iterdir():
        store.write(path, [])
    with pytest.raises(ConfigError, match="no trajectory in its"):
        write_report(run)


def test_the_learning_curve_is_a_picture(run):
    path = plots.learning_curve(run)
    assert path == run / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_the_learning_curve_needs_something_to_draw(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no .*metrics\.jsonl"):
        plots.learning_curve(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "policy/entropy": 1}\n')
    with pytest.raises(ConfigError, match="nothing to draw: expected one of episode/success"):
        plots.learning_curve(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/success": 1}\n')
    assert plots.learning_curve(tmp_path).is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[train\]"):
        plots.learning_curve(tmp_path)


def test_moving_average_is_over_the_last_values():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert plots.moving_average(values, 1).tolist() == values.tolist()
    assert plots.moving_average(values, 2).tolist() == [1.0, 1.5, 2.5, 3.5, 4.5]
    assert plots.moving_average(values, 9).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]


# ---- evaluations, errors, text ------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path, capsys):
    """The folder of a real evaluation of three policies; the second one meets failures."""
    folder = tmp_path / "evaluated"
    common = ["eval", "--env", "helpers_envs:test/Fault-v0", "--episodes", "20", "--out", str(folder), "--json"]
    plays = ["--policy", "expert", "--policy", "canned:wait", "--policy", "canned:go;"]
    faults = ["env.kwargs.fault=raise", "env.kwargs.at=2", "env.kwargs.who=[wait]", "rollout.retries=0"]
    failing = [seeding.eval_seed(0, i) for i in (3, 7)]
    faults += [f"env.kwargs.seeds={failing}", "rollout.max_failure_rate=0.5"]
    helpers_envs.forget()
    assert cli.main([*common, *plays, "--set", *faults]) == 0
    (tmp_path / "shown.json").write_text(capsys.readouterr().out)
    return folder


def test_an_evaluation_has_a_page_of_its_own(evaluated, capsys):
    shown = json.loads((evaluated.parent / "shown.json").read_text())
    path = write_report(evaluated)
    data = embedded(path.read_text())
    index = data["index"]
    assert [{k: v for k, v in p.items() if k != "file"} for p in index["policies"]] == shown
    assert [p["failed"] for p in index["policies"]] == [0, 2, 0]
    assert [p["versus"]["dropped"] for p in index["policies"][1:]] == [2, 0]
    assert index["files"] == ["expert", "canned_wait", "canned_go_"]
    assert index["list"]["group"] == [f"eval-{i:05d}" for i in range(20)] * 3
    assert index["curves"] == []
    assert "env.id: helpers_envs:test/Fault-v0" in index["config"]
    assert ["env", "helpers_envs:test/Fault-v0"] in index["facts"]
    assert cli.main(["view", str(evaluated)]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_a_large_evaluation_shows_the_same_episodes_of_every_policy(evaluated):
    index = embedded(write_report(evaluated, limit=9).read_text())["index"]
    assert index["list"]["group"] == [f"eval-{i:05d}" for i in range(3)] * 3
    assert index["policies"][0]["episodes"] == 20


def test_a_repeated_episode_counts_once(evaluated):
    log = evaluated / "canned_wait.jsonl"
    bad = [t for t in store.read(log) if t.status.failed]
    for trajectory in bad:
        trajectory.status, trajectory.success, trajectory.error = Status.DONE, True, None
    store.append(log, bad)
    index = embedded(write_report(evaluated).read_text())["index"]
    assert (index["policies"][1]["episodes"], index["policies"][1]["failed"], index["total"]) == (20, 0, 62)


def test_damaged_settings_of_an_evaluation_are_named(evaluated):
    (evaluated / "canned_wait.json").write_text('{"policy": "x"}')
    with pytest.raises(ConfigError, match=r"canned_wait\.json: KeyError"):
        write_report(evaluated)


def test_errors_are_counted_by_kind_with_their_messages():
    def failed(status, message):
        return Trajectory("e", 1, status=status, error=message)

    odd = Trajectory("e", 1, status=Status.DONE)
    odd.turns = [Turn("o", 0, 0, 0, 0, "t", None, parse_error=e) for e in ("no number", "no number", "empty")]
    shown = [failed(Status.TIMEOUT, "slow"), *(failed(Status.ENV_ERROR, m) for m in ("a", "b", "b")), odd]
    curves = {"rollout/error/env_error": {1.0: 2.0, 2.0: 1.0}, "rollout/error/engine_error": {1.0: 4.0}}
    assert report_data.errors_by_kind(shown, curves) == [
        {"kind": "engine_error", "count": 0, "messages": [], "attempts": 4},
        {"kind": "env_error", "count": 3, "messages": [("b", 2), ("a", 1)], "attempts": 3},
        {"kind": "timeout", "count": 1, "messages": [("slow", 1)], "attempts": 0},
        {"kind": "parse_error", "count": 3, "messages": [("no number", 2), ("empty", 1)], "attempts": 0},
    ]


def test_a_turn_shows_the_mean_advantage_of_its_tokens(run):
    data = embedded(write_report(run).read_text())
    stored = [t for name in data["index"]["files"] for t in store.read(run / "trajectories" / f"{name}.jsonl")]
    learned = 0
    for number, trajectory in enumerate(stored):
        for shown, turn in zip(data[f"t{number}"]["turns"], trajectory.turns, strict=True):
            advantages = trajectory.segments[turn.segment].advantages
            learned += advantages is not None
            expected = None if advantages is None else pytest.approx(np.mean(advantages[turn.start : turn.stop]), 1e-3)
            assert shown["advantage"] == expected
    assert learned > 100


@pytest.mark.parametrize("context", ["append", "window:0"])
def test_a_policy_that_writes_text_is_shown_as_text(tmp_path, context):
    settings = RolloutConfig(context=context, parse_limit=9)
    with EnvPool("test/Echo-v0", {"rounds": 3}) as pool:
        _, [played] = evaluate(pool, CannedPolicy(["réd", "走廊", "x"]), settings, 1, log=tmp_path / "canned.jsonl")
    data = embedded(write_report(tmp_path).read_text())
    detail, tokenizer = data["t0"], ByteTokenizer()
    assert data["index"]["list"]["tokens"] == [None]
    for segment, shown, texts in zip(played.segments, detail["segments"], detail["texts"], strict=True):
        assert "".join(texts) == tokenizer.decode(segment.ids)
        written = [text for text, bit in zip(texts, unpacked(shown["mask"]), strict=True) if bit]
        assert written == [
            f"{turn.text}<|im_end|>" for turn in played.turns if played.segments[turn.segment] is segment
        ]
    for turn, shown in zip(played.turns, detail["turns"], strict=True):
        texts = detail["texts"][shown["segment"]]
        assert "".join(texts[shown["start"] : shown["stop"]]) == f"{turn.text}<|im_end|>"
    assert data["index"]["tokens"] is None


def test_an_episode_that_broke_shows_what_was_not_answered(tmp_path):
    broken = Trajectory("e", 1, status=Status.ENGINE_ERROR, error="the server went away")
    broken.messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "You see a door."}]
    detail = report_data.detail(broken, {})
    assert (detail["unanswered"], detail["turns"], detail["error"]) == ("You see a door.", [], "the server went away")


# ---- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def open_page(tmp_path, chromium):
    """Open a page in headless Chromium and return its document after the script has run."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )

    def dump(path, address=""):
        profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
        command = [chromium, *flags.split(), f"--user-data-dir={profile}", "--dump-dom", path.as_uri() + address]
        return subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout

    return dump


def ready(document):
    """Milliseconds from the start of navigation to the first drawn view."""
    return int(re.search(r'data-ready="(\d+)"', document)[1])


@pytest.mark.browser
def test_calls_of_tools_are_shown(tmp_path, open_page):
    run = make_run(tmp_path / "run", steps=3)
    trajectories = store.read(run / "trajectories" / "expert.jsonl")
    trajectories[0].turns[0].calls = [
        ToolUse("python", '{"code": "print(6 * 7)", "n": NaN}', "42", exit_code=0, seconds=0.0012),
        ToolUse("bash", '{"command": "false"}', "[exit code 1]", exit_code=1, seconds=0.5),
        ToolUse("bash", "not JSON", "[ended]", "timeout", seconds=20.0),
    ]
    store.write(run / "trajectories" / "expert.jsonl", trajectories)
    path = write_report(run)
    index = embedded(path.read_text())["index"]
    first = index["list"]["file"].index(index["files"].index("expert"))
    document = without_data(open_page(path, f"#t={first}&view=turns"))
    calls = re.findall(r'<details class="fold call"( open="")?>(.*?)</details>', document, flags=re.DOTALL)
    assert [bool(is_open) for is_open, _ in calls] == [False, True, True], "those that went wrong are open"
    texts = [" ".join(unescape(re.sub("<[^>]*>", " ", call)).split()) for _, call in calls]
    assert texts == [
        "python ok, exit code 0 1.2 ms code print(6 * 7) n NaN Output 42",
        "bash ok, exit code 1 500 ms command false Output [exit code 1]",
        "bash timeout 20 s arguments not JSON Output [ended]",
    ]


@pytest.mark.browser
def test_untrusted_text_is_inert(tmp_path, open_page):
    run = make_run(tmp_path / "<b>run &amp; co", steps=3)
    names = ("eval_before", "expert")
    for name in names:
        trajectories = store.read(run / "trajectories" / f"{name}.jsonl")
        for trajectory in trajectories:
            trajectory.group = trajectory.policy = trajectory.final_observation = trajectory.error = PAYLOAD
            trajectory.info[PAYLOAD] = PAYLOAD
            trajectory.messages[0]["content"] = PAYLOAD
            for turn in trajectory.turns:
                turn.observation = turn.text = PAYLOAD
                turn.action, turn.parse_error = (None, PAYLOAD) if turn.action is None else (PAYLOAD, None)
                turn.calls = [ToolUse(PAYLOAD, json.dumps({PAYLOAD: PAYLOAD}), PAYLOAD, PAYLOAD)]
            trajectory.segments[0].edit = Edit(0, 0, 3, PAYLOAD, PAYLOAD)
        store.write(run / "trajectories" / f"{name}.jsonl", trajectories)
    (run / "config.yaml").write_text(f'model: "{PAYLOAD[:60]!r}"\n')
    (run / "tokens.json").write_text(json.dumps([PAYLOAD] * len(PIECES)))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, f"{PAYLOAD}/x": 1.0}) + "\n")
    path = write_report(run)
    index = embedded(path.read_text())["index"]
    first = index["list"]["file"].index(index["files"].index("expert"))
    views = ("#overview", *(f"#t={first}&view={view}" for view in ("turns", "tokens", "group")))
    for view in views:
        document = without_data(open_page(path, view))
        assert ready(document) > 0
        shown = re.sub(r"<script>.*?</script>", "", document, flags=re.DOTALL)
        assert "<title>&lt;b&gt;run &amp;amp; co" in shown
        assert "<img" not in shown
        assert "<script" not in shown
        assert "&lt;/script&gt;" in shown
        assert PAYLOAD[:-2] in unescape(shown).replace("\u21b5\n", "\n")


@pytest.mark.browser
def test_the_views_show_what_they_promise(run, open_page):
    path = write_report(run)
    data = embedded(path.read_text())
    forked = next(i for i in range(24, 64) if len(data[f"t{i}"]["segments"]) > 1)
    overview = open_page(path)
    for text in ("Before and after", "22%", "77%", "zero_std_frac", "max_turns: 10"):
        assert text in overview
    assert overview.count("<figure") == len(data["index"]["curves"])
    turns = without_data(open_page(path, f"#t={forked}"))
    assert "History rewritten before turn" in turns
    assert turns.count('class="block model"') == len(data[f"t{forked}"]["turns"])
    tokens = without_data(open_page(path, f"#t={forked}&view=tokens&color=advantage"))
    amount = sum(s["kept"] + len(s["ids"]) for s in data[f"t{forked}"]["segments"])
    assert len(re.findall(r'<span [^>]*data-k="\d+"', tokens)) == amount
    assert re.search(r"--(plus|minus)\) \d+%", tokens)
    group = without_data(open_page(path, f"#t={forked}&view=group"))
    assert "reference" in group
    assert re.search(r"first differs at</th>(<td[^>]*>(turn \d+|same|reference)</td>){8}", group)


@pytest.mark.browser
def test_a_group_is_compared_turn_by_turn_and_an_evaluation_policy_by_policy(run, evaluated, open_page):
    path = write_report(run)
    data = embedded(path.read_text())
    names = data["index"]["files"]
    first = data["index"]["list"]["file"].index(names.index("step_00000"))
    group = without_data(open_page(path, f"#t={first}&view=group"))
    members = [data[f"t{first + m}"] for m in range(8)]
    assert group.count('<td class="deed') == sum(len(m["turns"]) for m in members)
    assert group.count("advantage") >= sum(bool(t["advantage"]) for m in members for t in m["turns"])
    assert group.count("reward +1") == sum(t["reward"] == 1 for m in members for t in m["turns"])
    path = write_report(evaluated)
    overview = without_data(open_page(path))
    assert re.search(r'<th scope="row">canned:wait</th><td>18</td><td class="warn">2</td>', overview)
    assert "difference from expert" in overview
    assert "2 dropped" in overview
    assert ">env_error<" in overview
    assert "step raised RuntimeError: it broke" in overview
    policies = without_data(open_page(path, "#t=23&view=group"))
    assert re.search(r"<th scope=\"col\">policy</th>.*?>expert<.*?>canned:wait<.*?>canned:go;<", policies)
    broken = without_data(open_page(path, "#t=23"))
    assert "counts nowhere" in broken
    assert "it broke" in broken
    text = without_data(open_page(path, "#t=0&view=tokens"))
    assert "This policy writes text" in text
    assert "<span" in text


@pytest.mark.browser
def test_two_thousand_trajectories_open_within_three_seconds(tmp_path, open_page):
    path = write_report(make_run(tmp_path / "run", count=2000))
    document = open_page(path, "#trajectories")
    assert "2,000 trajectories" in document
    assert without_data(document).count('role="option"') < 60
    assert ready(document) < 3000
