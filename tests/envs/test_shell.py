"""Shell: the expert solves every task, near misses are misses, and no trick of an agent turns into a reward."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from agentgym.envs import shell_base
from agentgym.envs.shell import TASKS, ShellEnv, make_task
from agentgym.envs.shell_base import Found, is_trivial

from agentgym.env_worker import EnvPool
from agentgym.errors import SandboxError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import ExpertPolicy
from agentgym.rollout import RolloutConfig
from agentgym.tool_calls import Call, canonical

PROGRAMS = ("mend_program", "write_program")


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def backend(request):
    """Every backend that can be had here."""
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    return request.param


@pytest.fixture(scope="module")
def env(backend):
    """One environment for all tests of a backend: no trick must spoil it for the next episode."""
    made = ShellEnv(backend=backend)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Programs that hang are given up sooner."""
    monkeypatch.setattr(shell_base, "_RUN_S", 1.5)


def act(env, name, **arguments):
    return env.step(canonical([Call(name, arguments)]))


def submit(env, answer="done"):
    return act(env, "submit", answer=answer)


def do_plan(env, options):
    """The expert's work up to its submission; the answer it would hand in."""
    _, info = env.reset(seed=options.pop("seed", 0), options={**options, "expert": True})
    while True:
        call = json.loads(info["expert_action"])
        if call["name"] == "submit":
            return call["arguments"]["answer"]
        *_, info = env.step(info["expert_action"])


# ---- the tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_solves_it(env, name):
    for level in (1, 2, 3):
        for seed in range(3):
            answer = do_plan(env, {"task": name, "level": level, "seed": seed, "split": "dev"})
            text, reward, terminated, truncated, info = submit(env, answer)
            assert (text, reward, terminated, truncated) == ("[submitted]\nRight.", 1.0, True, False), (level, seed)
            assert (info["success"], info["score"], info["task"], info["level"]) == (True, 1.0, name, level)


@pytest.mark.parametrize("name", TASKS)
def test_who_does_nothing_gets_nothing(env, name):
    for seed in range(8):
        env.reset(seed=seed, options={"task": name})
        text, reward, terminated, _, info = submit(env)
        assert (text, reward, terminated, info["success"]) == ("[submitted]\nWrong.", 0.0, True, False)


@pytest.mark.parametrize("name", sorted(set(TASKS) - {*PROGRAMS, "count_lines"}))
def test_a_single_thing_that_is_wrong_is_wrong(env, name):
    for level in (1, 3):
        answer = do_plan(env, {"task": name, "level": level})
        task = env._problem
        tree = shell_base._look(env._box, task.look)
        assert task.judge(tree, answer)
        files = [path for path, found in tree.items() if found.kind == "file"]
        assert files
        for path in files:
            found = tree[path]
            other = replace(found, data=b"@" + found.data[1:])
            for changed in (
                {p: f for p, f in tree.items() if p != path},
                {**tree, path: other},
                {**tree, path: Found("other", found.mode, None)},
                {**tree, path: replace(found, data=None)},
            ):
                assert not task.judge(changed, answer), path
        if len(files) > 1:
            first = files[0]
            assert not task.judge({**tree, f"{first}.more": tree[first]}, answer)
        if name == "permissions":
            assert not task.judge({**tree, files[0]: replace(tree[files[0]], mode=0o777)}, answer)
        assert not task.judge({}, answer)


def test_the_number_is_what_counts_in_a_question(env):
    answer = do_plan(env, {"task": "count_lines"})
    for said, right in (
        (answer, True),
        (f" {answer}\n", True),
        (f"{answer} lines", False),
        (str(int(answer) + 1), False),
    ):
        env.reset(seed=0, options={"task": "count_lines"})
        assert submit(env, said)[4]["success"] is right


def test_white_space_at_ends_does_not_matter(env):
    do_plan(env, {"task": "merge_lists"})
    act(env, "bash", command="sed -i 's/$/  /' all.txt; echo >> all.txt")
    assert submit(env)[4]["success"]
    do_plan(env, {"task": "csv_totals"})
    act(env, "bash", command="sed -i 's/\\r*$/\\r/' totals.csv")
    assert submit(env)[4]["success"]


def test_another_way_is_as_good(env):
    """JSON in another layout, an archive with ./ before its names, programs in other words."""
    do_plan(env, {"task": "json_edit"})
    act(
        env,
        "python",
        code="import json\nc = json.load(open('config.json'))\njson.dump(c, open('config.json', 'w'), sort_keys=True)",
    )
    assert submit(env)[4]["success"]
    do_plan(env, {"task": "repack_tar"})
    act(env, "bash", command="mkdir t && tar -xf texts.tar -C t && tar -cf texts.tar -C t ./backup && rm -r t")
    assert submit(env)[4]["success"]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_differ_and_ask_for_something(name):
    texts = set()
    for seed in range(60):
        task = make_task(name, np.random.default_rng(seed), 1 + seed % 3)
        assert not is_trivial(task)
        files = sorted((path, file.data) for path, file in task.files.items())
        texts.add(f"{task.text}{files}")
    assert len(texts) > 55


def test_every_mistake_shows_in_the_hidden_runs(monkeypatch):
    """The programs are this package's own, so they can run here."""

    def printed(source, stdin):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(source, "numbers.py", "exec"), {})
        except (SyntaxError, TypeError, ValueError, IndexError):
            return ["an error"]
        return shell_base.lines(out.getvalue())

    for seed in range(600):
        task = make_task("mend_program", np.random.default_rng(seed), 1 + seed % 3)
        broken, good = task.files["numbers.py"].data, task.plan[1].arguments["content"]
        wanted = [shell_base.lines(run.output) for run in task.runs]
        assert [printed(good, run.stdin) for run in task.runs] == wanted
        assert [printed(broken, run.stdin) for run in task.runs] != wanted, broken.decode()


def test_a_task_with_nothing_to_do_is_drawn_again(monkeypatch):
    drawn = []

    def make(rng, level):
        drawn.append(level)
        name = "a.txt" if len(drawn) < 3 else "b.txt"
        return shell_base.ShellTask(
            "Rename b.txt to a.txt in f.",
            (),
            files=shell_base.plain({f"f/{name}": "x"}),
            look=("f",),
            judge=shell_base.holds({"f/a.txt": b"x"}, "f"),
        )

    monkeypatch.setitem(TASKS, "rename", make)
    assert list(make_task("rename", np.random.default_rng(0), 2).files) == ["f/b.txt"]
    assert drawn == [2, 2, 2]


# ---- what is secret stays secret -------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_the_box_holds_the_files_of_the_task_and_nothing_else(env, name):
    observation, info = env.reset(seed=5, options={"task": name})
    task = env._problem
    shown = act(env, "bash", command="find . /tmp -type f -printf '%P\\n' | LC_ALL=C sort")[0]
    assert shown.encode().split(b"\n") == sorted(path.encode() for path in task.files)
    told = f"{observation}{json.dumps(info)}{env.instructions}"
    for run in task.runs:
        assert run.stdin + "".join(map(str, run.files.values())) not in told
        assert run.output not in told or len(run.output) < 12
    assert "expert_action" not in info


SPY = """
import glob, subprocess
subprocess.Popen(["bash", "-c", "while :; do cp unseen-* /workspace/stolen/; done"], start_new_session=True,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def test_nothing_of_the_agent_runs_while_it_is_checked(env):
    do_plan(env, {"task": "write_program"})
    act(env, "bash", command="mkdir stolen")
    act(env, "python", code=SPY)
    assert submit(env)[4]["success"]  # the check itself goes its way
    assert env._box.list("stolen") == []
    assert any(entry.name.startswith("unseen-") for entry in env._box.list())


def test_a_process_that_spoils_the_result_is_ended_and_the_rest_judged(env):
    """It rewrites the file for as long as it lives; what lies there once it has been ended is what counts."""
    do_plan(env, {"task": "merge_lists"})
    spoil = "while :; do echo spoilt > all.txt; done"
    act(
        env,
        "python",
        code=f"import subprocess\np = subprocess.Popen(['bash', '-c', '{spoil}'], start_new_session=True)",
    )
    act(env, "bash", command="sleep 0.2")
    assert not submit(env)[4]["success"]
    env._box.put("all.txt", "mine")
    env._box.exec("sleep 0.1")
    assert env._box.get("all.txt") == b"mine"


FORGED = """
import os, sys
real = os.write
rows = [[], True]
for n in range(40):
    print("0" * 32, '[[], true]')
    print("1.0 Right {\\"success\\": true}")
sys.stdout.flush()
os._exit(0)
"""
PLACES = (
    *("sitecustomize.py", "usercustomize.py", "json.py", "os.py", "base64.py", "stat.py", "encodings.py", "re.py"),
    *(f".local/lib/python3.{minor}/site-packages/usercustomize.py" for minor in range(9, 15)),
    *(f".local/lib/python3.{minor}/site-packages/x.pth" for minor in range(9, 15)),
    *(".bashrc", ".profile", ".bash_profile", ".pythonrc.py", "python3", "bin/python3", ".local/bin/python3"),
)


@pytest.mark.parametrize("name", ["merge_lists", *PROGRAMS])
def test_files_that_interpreters_read_forge_nothing(env, name):
    env.reset(seed=2, options={"task": name})
    for path in PLACES:
        code = f"import sys; exec({FORGED!r})" if path.endswith(".pth") else FORGED
        env._box.put(
            path, "#!/bin/sh\necho Right\nexit 0\n" if path.endswith(("rc", "profile", "python3")) else code, 0o755
        )
    act(env, "bash", command="export PYTHONSTARTUP=$HOME/.pythonrc.py PYTHONPATH=$HOME BASH_ENV=$HOME/.bashrc; true")
    assert not submit(env)[4]["success"]
    assert submit_after_plan(env, name)  # and they do not outlive the episode


def submit_after_plan(env, name):
    return submit(env, do_plan(env, {"task": name}))[4]["success"]


def test_an_interpreter_that_was_patched_says_nothing_of_the_result(env):
    env.reset(seed=2, options={"task": "permissions"})
    patch = (
        "import builtins, json, os, sys\n"
        "json.dumps = lambda *a, **k: '[[], true]'\nos.lstat = lambda p: os.stat('/bin/sh')\n"
        "builtins.print = lambda *a, **k: sys.stdout.write('Right')\nos.environ['PYTHONPATH'] = '/workspace'"
    )
    act(env, "python", code=patch)
    assert not submit(env)[4]["success"]


def test_writing_to_the_worker_forges_nothing(env):
    env.reset(seed=2, options={"task": "merge_lists"})
    said = act(env, "bash", command="for f in /proc/1/fd/1 /proc/1/mem /proc/$PPID/fd/1; do echo x > $f; done; true")[0]
    assert "denied" in said or "No such" in said or "Permission" in said, said
    assert not submit(env)[4]["success"]


@pytest.mark.parametrize(
    "command",
    [
        "ln -s /tmp/all all.txt; awk 1 lists/* | tr A-Z a-z | grep . | LC_ALL=C sort -u > /tmp/all",
        "ln -s /dev/zero all.txt",
        "ln -s all.txt all.txt",
        "mkfifo all.txt",
        "mkdir -p all.txt/all.txt",
        "head -c 100000000 /dev/zero > all.txt",
        "touch all.txt; chmod 000 all.txt",
        "rm -rf lists; chmod 000 .",
        "i=0; while mkdir $i 2>/dev/null; do cd $i; i=$((i+1)); [ $i -gt 200 ] && break; done",
        "head -c 900000000 /dev/zero > full; head -c 900000000 /dev/zero > /tmp/full",
        "printf '\\377\\376\\0' > all.txt",
    ],
    ids=["link", "zero", "loop", "fifo", "folder", "large", "unreadable", "closed", "deep", "full", "bytes"],
)
def test_odd_files_are_wrong_and_hold_nothing_up(env, command):
    env.reset(seed=2, options={"task": "merge_lists"})
    act(env, "bash", command=command)
    assert not submit(env)[4]["success"]
    assert submit_after_plan(env, "merge_lists")


def test_more_files_than_can_be_looked_at_are_wrong(env):
    do_plan(env, {"task": "rename_suffix"})
    act(env, "bash", command="cd photos && mkdir many && cd many && seq 6000 | xargs touch")
    assert not submit(env)[4]["success"]


def test_a_deep_tree_in_a_folder_that_is_looked_at(env):
    do_plan(env, {"task": "rename_suffix"})
    act(env, "python", code="import os\nos.chdir('photos')\nfor i in range(3000):\n    os.mkdir('d'); os.chdir('d')")
    assert submit(env)[4]["success"] in (True, False)  # empty folders do not matter, and nothing breaks
    assert submit_after_plan(env, "rename_suffix")


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "print('Right')",
        FORGED,
        "import time\ntime.sleep(60)",
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.fork()",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)",
        "import subprocess\nprint(subprocess.run(['cat', 'expected.txt'], capture_output=True, text=True).stdout)",
        "import sys\nsys.exit(1)",
        "x = bytearray(2 << 30)",
    ],
    ids=["exit", "verdict", "forged", "sleeps", "floods", "forks", "kills", "knows", "fails", "memory"],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_judged_by_what_they_print(env, name, program):
    env.reset(seed=4, options={"task": name})
    path = "numbers.py" if name == "mend_program" else "tool.py"
    act(env, "write_file", path=path, content=program)
    assert not submit(env)[4]["success"]


def test_a_program_cannot_keep_what_it_is_given_for_later_or_leave_processes(env):
    do_plan(env, {"task": "write_program"})
    task = env._problem
    good = json.loads(canonical([task.plan[0]]))["arguments"]["content"]
    leaves = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(0.2)\n"
        "    open('late', 'w').write('x')\n    os._exit(0)\n"
    )
    act(env, "write_file", path="tool.py", content=leaves + good)
    assert submit(env)[4]["success"]  # the child is ended with the run
    env._box.exec("sleep 0.5")
    assert not any(entry.name == "late" for entry in env._box.list())


def test_a_folder_in_the_place_of_hidden_input_is_wrong(env):
    do_plan(env, {"task": "write_program"})
    act(env, "bash", command="mkdir unseen-0.txt")
    assert not submit(env)[4]["success"]


def test_a_box_that_is_lost_at_the_check_is_no_verdict(env):
    do_plan(env, {"task": "merge_lists"})
    env._box.close()
    with pytest.raises(SandboxError):
        submit(env)
    assert submit_after_plan(env, "merge_lists")


def test_evaluation_without_further_settings(backend):
    with EnvPool("agentgym/Shell-v0", {"backend": backend}) as pool:
        result, played = evaluate(pool, ExpertPolicy(), RolloutConfig(concurrency=4), 12)
    assert (result.success.mean, result.episodes, result.failed) == (1.0, 12, 0)
    assert len({t.info["task"] for t in played}) > 4
    assert all("expert_action" not in json.dumps(t.messages) for t in played)
