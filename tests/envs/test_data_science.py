import csv
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import agentgym  # noqa: F401
from agentgym.env_worker import EnvPool
from agentgym.errors import ConfigError, SandboxError
from agentgym.evaluate import evaluate
from agentgym.policies.scripted import CannedPolicy, ExpertPolicy
from agentgym.rollout import RolloutConfig

pytest.importorskip("sklearn")

from agentgym.envs import data_science
from agentgym.envs.data_science import ATTEMPTS, EXPERT, DataScienceEnv
from agentgym.envs.data_science_box import probabilities, shown
from agentgym.envs.tables import DATASETS, builtin, read_csv

LOGISTIC = """from sklearn.linear_model import LogisticRegression
model = LogisticRegression(max_iter=5000).fit(X_train, y_train)"""
DUMMY = """from sklearn.dummy import DummyClassifier
model = DummyClassifier().fit(X_train, y_train)"""
FORGER = """import numpy, sklearn.base
class Forger(sklearn.base.BaseEstimator):
    classes_ = numpy.unique(y_train)
    def predict_proba(self, X):
        {}
model = Forger()"""


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def backend(request):
    """Every backend that can be had here."""
    request.getfixturevalue("docker_host" if request.param == "docker" else "bubblewrap")
    return request.param


@pytest.fixture(scope="module")
def env(backend):
    """One environment for all tests of a backend: programs must not be able to spoil it for the next ones."""
    made = DataScienceEnv("iris", backend=backend, time_limit=10)
    yield made
    made.close()


@pytest.fixture
def any_env(docker_host):
    """An environment for what does not depend on the backend."""
    made = DataScienceEnv("iris")
    yield made
    made.close()


def run(env, code, seed=0):
    env.reset(seed=seed)
    return env.step(code)


# ---- programs that work ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        LOGISTIC,
        "def build_model(X, y):\n    from sklearn.linear_model import "
        "LogisticRegression\n    return LogisticRegression(max_iter=5000).fit(X, y)",
    ],
)
def test_score_is_what_scikit_learn_computes_here(env, code):
    """The same model, fitted and scored in this process on the same halves."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    text, reward, terminated, truncated, info = run(env, code)
    scores = []
    for train, test in env._halves:
        model = LogisticRegression(max_iter=5000).fit(env._table.X[train], env._table.y[train])
        given = model.predict_proba(env._table.X[test])
        scores.append(roc_auc_score(env._table.y[test], given, multi_class="ovo"))
    assert reward == pytest.approx(np.mean(scores), abs=1e-3)
    assert (terminated, truncated) == (True, False)
    assert info == {"score": reward, "success": True, "attempts": 1, "failure": "", "task": "iris"}
    assert text == f"The mean ROC-AUC over 5 halves is {reward:.4f}."
    with pytest.raises(ResetNeeded):
        env.step(code)


def test_two_classes(docker_host):
    env = DataScienceEnv("breast_cancer")
    _, reward, *_ = run(env, LOGISTIC)
    assert 0.95 < reward < 1
    env.close()


def test_a_model_that_knows_nothing_scores_one_half(env):
    assert run(env, DUMMY)[1] == 0.5


def test_halves_are_disjoint_even_and_another_set_for_every_seed_and_split():
    seen = set()
    for name in DATASETS:
        table = builtin(name)
        for split in range(3):
            for seed in range(3):
                for train, test in data_science._halves(table, [split, seed]):
                    assert not set(train) & set(test)
                    assert len(train) + len(test) == len(table.y)
                    assert abs(len(train) - len(test)) <= 1
                    counts = np.bincount(table.y[train]) - np.bincount(table.y[test])
                    assert np.abs(counts).max() <= 1
                    seen.add((name, tuple(train)))
    assert len(seen) == len(DATASETS) * 3 * 3 * 5


def test_seeds_choose_the_halves_and_repeat(any_env):
    scores = [run(any_env, LOGISTIC, seed)[1] for seed in (0, 1, 0)]
    assert scores[0] == scores[2] != scores[1]
    any_env.reset(seed=0, options={"split": "test"})
    assert any_env.step(LOGISTIC)[1] != scores[0]


def test_random_programs_repeat(any_env):
    code = (
        "from sklearn.ensemble import RandomForestClassifier\nmodel = RandomForestClassifier(5).fit(X_train, y_train)"
    )
    assert run(any_env, code)[1] == run(any_env, code)[1]


# ---- programs that fail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "failure", "words"),
    [
        ("", "error", "NameError: name 'model' is not defined"),
        ("x = (", "error", "'(' was never closed"),
        ("x = 1\nmodel = undefined", "error", "line 2: model = undefined\nNameError"),
        ("model = 3", "error", "TypeError: build_model returned int, not a scikit-learn model"),
        (
            "from sklearn.linear_model import LogisticRegression\nmodel = LogisticRegression()",
            "error",
            "NotFittedError",
        ),
        ("import sys\nsys.exit(0)", "error", "SystemExit"),
        ("print('a look at', X_train.shape)\nraise ValueError('no')", "error", "a look at (75, 4)\nline 2"),
        ("from sklearn.svm import SVC", "forbidden", "SVC is not allowed"),
        ("import sklearn.model_selection as m\nm.GridSearchCV", "forbidden", "GridSearchCV is not allowed"),
        ("import os\nos._exit(0)", "died", "Its process ended."),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "died", "Its process ended."),
        ("while True:\n    print('x' * 100_000)", "output_limit", "It printed more"),
        ("x = [bytearray(1 << 26) for _ in range(100)]", None, None),
        (FORGER.format("return numpy.full((len(X), 3), 0.5)"), "probabilities", "sum of 1"),
        (FORGER.format("return numpy.full((len(X), 3), numpy.nan)"), "probabilities", "sum of 1"),
        (FORGER.format("return numpy.ones((len(X), 2)) / 2"), "error", "array of shape (75, 2)"),
        (FORGER.format("open('probabilities.bin', 'w').write('x' * 10**6); import os; os._exit(0)"), "died", ""),
        ("import os\nos.mkdir('X_test.npy')\nmodel = 1", "error", "TypeError"),
        (LOGISTIC + "\nimport os\nos.mkdir('X_test.npy')", "probabilities", "No probabilities came out"),
        (LOGISTIC + "\nimport os\nos.symlink('/etc/passwd', 'X_test.npy')", "probabilities", "No probabilities"),
    ],
)
def test_what_goes_wrong_in_a_program_is_told(env, code, failure, words):
    text, reward, terminated, truncated, info = run(env, code)
    assert (reward, terminated, truncated) == (-1.0, False, False)
    assert info["success"] is False
    if failure is None:  # out of memory: bubblewrap without cgroups limits a process, docker all of them
        assert info["failure"] in ("memory_limit", "error", "died")
        assert "memory" in text.lower() or info["failure"] == "died"
    else:
        assert info["failure"] == failure
        assert words in text
    assert text.startswith(f"This code failed:\n\n{code}\n\n")
    assert run(env, LOGISTIC)[1] > 0.9, "the next program must find everything in order"


def test_endless_program(backend):
    env = DataScienceEnv("iris", backend=backend, time_limit=1)
    try:
        text, reward, *_, info = run(env, "while True:\n    pass")
        assert (reward, info["failure"]) == (-1.0, "timeout")
        assert "It took longer than the time limit." in text
        deaf = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
        assert run(env, deaf)[-1]["failure"] == "timeout"
        slow = FORGER.format("import time; time.sleep(0.4); return numpy.full((len(X), 3), 1 / 3)")
        assert run(env, slow)[-1]["failure"] == "timeout", "the limit is for all halves together"
    finally:
        env.close()


def test_five_attempts(any_env):
    any_env.reset(seed=0)
    for number in range(1, ATTEMPTS + 1):
        *_, terminated, truncated, info = any_env.step("model = nothing")
        assert (terminated, truncated) == (False, number == ATTEMPTS)
        assert info["attempts"] == number
    with pytest.raises(ResetNeeded):
        any_env.step(LOGISTIC)
    any_env.reset(seed=0)
    any_env.step("model = nothing")
    *_, terminated, _, info = any_env.step(LOGISTIC)
    assert terminated
    assert info["attempts"] == 2


# ---- cheating --------------------------------------------------------------------------------------------


def told(env, code):
    """What a program can say of the box, through its error."""
    text, *_, info = run(env, f"{code}\nraise ValueError(found)")
    assert info["failure"] == "error"
    return text.rpartition("ValueError: ")[2].split("\n")[0]


def test_labels_are_not_in_the_image(env):
    """Scikit-learn's own copy of the data set would be the whole answer."""
    found = told(
        env,
        "import sklearn.datasets\ntry:\n    found = sklearn.datasets.load_iris().target\n"
        "except (OSError, ImportError):\n    found = 'gone'",
    )
    assert found == "gone"
    found = told(
        env,
        "import subprocess\nfound = subprocess.run(['bash', '-c', 'find / -name \"iris*\" -o -name "
        '"breast_cancer*" 2>/dev/null\'], capture_output=True, text=True).stdout.split()',
    )
    assert not [name for name in found.split("'") if name.endswith((".csv", ".gz", ".bz2", ".npy"))], found


def test_an_image_with_the_labels_is_refused(any_env, monkeypatch):
    monkeypatch.setattr(data_science, "DRIVER", data_science.DRIVER + "\ndef _labels_at_hand(): return True\n")
    any_env.reset(seed=0)
    with pytest.raises(SandboxError, match="could read the labels"):
        any_env.step(LOGISTIC)


def test_a_program_sees_its_training_half_and_nothing_else(env):
    assert told(env, "import os\nfound = sorted(os.listdir('.'))") == "['X_train.npy', 'program.py', 'y_train.npy']"
    assert told(env, "import os\nfound = os.listdir('/tmp')") == "[]"
    assert told(env, "found = sorted(locals())") == "['X_train', 'y_train']"
    assert told(env, "found = (X_train.shape, y_train.shape)") == "((75, 4), (75,))"


def test_nothing_is_carried_from_one_half_to_the_next(env):
    """Half of the rows are tested, and the other splits hold their labels: what a program hides must be gone."""
    code = """
import glob, os, subprocess
import sklearn.base
places = ("/workspace", "/tmp", "/dev/shm", "/var/tmp", os.getcwd())
kept = [path for place in places for path in glob.glob(place + "/**/kept*", recursive=True)]
running = os.popen("cat /proc/[0-9]*/comm").read()
if kept or os.environ.get("KEPT") or hasattr(sklearn.base, "kept") or "sleep" in running:
    raise ValueError("something was kept")
for place in places:
    try:
        os.makedirs(place + "/kept/deep", exist_ok=True)
        open(place + "/kept/deep/kept-file", "w").write("labels")
    except OSError:
        pass
os.environ["KEPT"] = "1"
sklearn.base.kept = y_train
subprocess.Popen(["sle" + "ep", "100"], start_new_session=True)
from sklearn.linear_model import LogisticRegression
model = LogisticRegression(max_iter=5000).fit(X_train, y_train)
"""
    text, reward, *_ = run(env, code)
    assert reward > 0.9, text
    assert run(env, code, 1)[1] > 0.9


def test_tampering_with_the_driver_gains_nothing(env):
    """The driver is in the agent's hands, the labels are not: what it writes is still scored here."""
    code = """
import __main__, numpy
def forged(classes):
    numpy.full((75, 3), 1 / 3).astype("<f8").tofile("probabilities.bin")
__main__._predict = forged
model = 3
"""
    assert run(env, code)[-1]["failure"] == "error"
    code = code.replace(
        "model = 3", "from sklearn.dummy import DummyClassifier\nmodel = DummyClassifier().fit(X_train, y_train)"
    )
    assert run(env, code)[1] == 0.5


def test_a_broken_box_is_our_failure_and_replaced(any_env):
    any_env.reset(seed=0)
    any_env.step("model = nothing")
    any_env._box.close()
    with pytest.raises(SandboxError):
        any_env._box.ping()
    assert any_env.step(LOGISTIC)[1] > 0.9


# ---- what comes out, and what is shown -------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [[0.5, 0.5]],
        [[1, 0], [0.4, 0.5]],
        [[2, -1], [0, 1]],
        [[np.nan, 1], [0, 1]],
        [[np.inf, 0], [0, 1]],
    ],
)
def test_bad_probabilities(rows):
    with pytest.raises(ValueError, match="probabilities"):
        probabilities(np.array(rows, dtype="<f8").tobytes(), 2, 2)
    with pytest.raises(ValueError, match="probabilities"):
        probabilities(b"", 2, 2)


def test_good_probabilities():
    rows = np.array([[0.25, 0.75], [1, 0]])
    assert np.array_equal(probabilities(rows.astype("<f8").tobytes(), 2, 2), rows)


def test_shown():
    assert shown("<object at 0x7f0012345678>\n") == "<object at 0x...>"
    assert len(shown("x" * 10_000)) < 1600


# ---- tables ----------------------------------------------------------------------------------------------


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_with_categories_and_missing_values(tmp_path, docker_host):
    rng = np.random.default_rng(0)
    rows = [["age", "colour", "home", "class"]]
    for k in range(60):
        good = k % 2
        age = "?" if k % 10 == 0 else f"{rng.normal(20 * good, 5):.2f}"
        rows.append(
            [age, "" if k % 15 == 0 else ["red", "blue"][good], "a" if rng.random() < 0.5 else "b", f"is {good}"]
        )
    rows.append(["1", "red", "a", ""])
    path = write(tmp_path / "people.csv", rows)
    table = read_csv(path, "class")
    assert table.X.shape == (60, 3)
    assert table.features == ("age", "colour", "home")
    assert table.categories == (0, 2, 2)
    assert table.classes == ("is 0", "is 1")
    assert list(table.y[:4]) == [0, 1, 0, 1]
    assert np.isnan(table.X).sum(axis=0).tolist() == [6, 4, 0]
    assert table.X[1, 1] == 0, "blue comes before red"
    env = DataScienceEnv(csv=str(path), target="class")
    text, _ = env.reset(seed=0, options={"expert": True})
    assert "Data set people: 60 rows, 3 features, 2 classes." in text
    assert "colour (category, 0 to 1)" in text
    assert "Missing values are NaN: age 6, colour 4." in text
    _, reward, *_, info = env.step(EXPERT)
    assert reward > 0.9
    assert info["task"] == "people"
    env.reset(seed=0)
    assert "NaN" in env.step(LOGISTIC)[0]
    env.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("a,class\n1,x\n2\n", "row 3 has 1 values, and there are 2 columns"),
        ("a,a,class\n1,2,x\n", "more than one column is called 'a'"),
        ("a,b\n1,2\n", "unknown target column"),
        ("class\nx\ny\n", "no column but the target"),
        ("a,class\n1,x\n2,x\n", "has 1 classes"),
        ("a,class\n1,x\n2,x\n3,y\n", "class 'y' has one row"),
        ("a,class\ninf,x\n2,x\n3,y\n4,y\n", "infinite"),
    ],
)
def test_csv_of_no_use(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_csv(path, "class")


def test_csv_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", "class")


@pytest.mark.parametrize("name", DATASETS)
def test_builtin_data_sets(name):
    from sklearn import datasets

    table = builtin(name)
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    assert np.array_equal(table.X, X)
    assert np.array_equal(table.y, y)
    assert len(table.features) == len(table.categories) == X.shape[1]
    assert len(table.classes) == len(set(y))
    assert "No value is missing." in table.describe()


# ---- the environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"dataset": "irsi"}, "unknown dataset"),
        ({"split": "valid"}, "unknown split"),
        ({"time_limit": 0}, "time_limit"),
        ({"backend": "dcoker"}, "unknown sandbox backend"),
        ({"render_mode": "human"}, "unknown render_mode"),
        ({"csv": "/nowhere.csv"}, "cannot be read"),
    ],
)
def test_wrong_arguments(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        DataScienceEnv(**{"backend": "bubblewrap", **kwargs})


@pytest.mark.parametrize("options", [{"dataset": "none"}, {"split": "none"}, {"colour": 1}])
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        DataScienceEnv(backend="bubblewrap").reset(seed=0, options=options)


def test_gymnasium_checker(docker_host):
    env = gym.make("agentgym/DataScience-v0", dataset="iris", render_mode="ansi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    assert not [str(w.message) for w in caught if "gymnasium" in str(w.filename)]
    text, _ = env.reset(seed=0)
    assert env.render() == text
    env.close()


@pytest.mark.parametrize("dataset", DATASETS)
def test_expert_does_well(docker_host, dataset):
    env = DataScienceEnv(dataset, expert=True)
    _, info = env.reset(seed=3)
    _, reward, terminated, *_, info = env.step(info["expert_action"])
    assert terminated
    assert reward > 0.985
    assert info["expert_action"] is None
    env.close()


def test_evaluation(docker_host):
    """With the codec of the registry, which carries programs of many lines."""
    config = RolloutConfig(max_turns=5, concurrency=2, max_new_tokens=2000, context_limit=20_000)
    with EnvPool("agentgym/DataScience-v0", {"dataset": "iris"}) as pool:
        result, played = evaluate(pool, CannedPolicy(["model = nothing", LOGISTIC]), config, 2)
        assert result.success.mean == 1
        for trajectory in played:
            first, second = trajectory.turns
            assert first.reward == -1
            assert second.text == f"```python\n{LOGISTIC}\n```"
            assert second.action == LOGISTIC
            assert "NameError" in second.observation
        result, _ = evaluate(pool, ExpertPolicy(), config, 2)
        assert result.returns.mean > 0.98
