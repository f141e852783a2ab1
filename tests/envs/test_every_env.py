"""Every registered environment keeps every promise, and says what its golden transcript says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from agentgym.envs import textworld_express
from agentgym.sandboxes import SandboxUnavailable

from agentgym import golden
from agentgym.checks import CHECKS, check_agent_env
from agentgym.errors import MissingDependency
from agentgym.registration import ENVIRONMENTS

pytestmark = pytest.mark.filterwarnings("ignore:Game .* is not fully supported")

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = [(entry, kwargs) for entry in ENVIRONMENTS for kwargs in entry.variants]


@pytest.fixture(scope="module", autouse=True)
def cache(request, tmp_path_factory):
    """A cache of this module's own; the images of sandboxes come from the usual one."""
    with contextlib.suppress(pytest.skip.Exception):
        request.getfixturevalue("docker_host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def name_of(entry, kwargs):
    return golden.path_of(Path(), entry.id, kwargs).stem


@contextlib.contextmanager
def skipped_if_missing():
    """Skip where the engine is not installed."""
    try:
        yield
    except (MissingDependency, SandboxUnavailable) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("entry", ENVIRONMENTS, ids=lambda entry: entry.id)
def test_every_promise_is_kept(entry):
    with skipped_if_missing():
        report = check_agent_env(entry.id, entry.variants[0], seeds=(0, 1))
    assert report.passed, str(report)
    assert report.ran == [name for name in CHECKS if name not in entry.skips]
    assert report.skipped == entry.skips


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "kwargs"), VARIANTS, ids=[name_of(*v) for v in VARIANTS])
def test_every_promise_is_kept_by_every_variant(entry, kwargs):
    with skipped_if_missing():
        report = check_agent_env(entry.id, kwargs, seeds=range(100, 108))
    assert report.passed, str(report)


@pytest.mark.parametrize(("entry", "kwargs"), VARIANTS, ids=[name_of(*v) for v in VARIANTS])
def test_golden_transcript(entry, kwargs):
    path = golden.path_of(GOLDEN, entry.id, kwargs)
    header = json.loads(path.read_text().split("\n")[0])
    assert (header["env"], header["kwargs"]) == (entry.id, kwargs)
    assert (header["seeds"], header["steps"]) == (list(golden.SEEDS), golden.STEPS)
    with skipped_if_missing():
        difference = golden.compare(path)
    assert difference is None, difference


def test_no_golden_transcript_is_left_over():
    assert {path.name for path in GOLDEN.iterdir()} == {golden.path_of(GOLDEN, e.id, k).name for e, k in VARIANTS}


def test_all_games_of_textworld_express_have_one():
    entry = next(e for e in ENVIRONMENTS if e.id == "agentgym/TextWorldExpress-v0")
    assert {kwargs["game"] for kwargs in entry.variants} == set(textworld_express.PARAMS)
