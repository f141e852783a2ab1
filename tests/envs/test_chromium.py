"""The shared browser: nothing of it outlives its owner, and what goes wrong in it is an error of the environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from agentgym.envs import chromium

from agentgym.errors import EnvError, MissingDependency

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("chromium")]

OWNER = """
import sys, time
from agentgym.envs import chromium
page = chromium.open_page(160, 210, False)
print(page.browser._process.pid, page.browser._guard.pid, page.browser.folder, flush=True)
time.sleep(1000)
"""


@pytest.fixture
def pages():
    """Opens pages, and ends the browser afterwards."""
    chromium.acquire()
    yield lambda visible=False: chromium.open_page(160, 210, visible)
    chromium.release()
    assert chromium._current is None


def members(group):
    """The processes of a group that still run."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                found.add(int(entry.name))
    return found


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_owners(count, moments):
    """Start owners and kill each after so many seconds, or once its page is open; then look for what is left."""
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "TMPDIR": folder}
            owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=env)
            moment = moments[number % len(moments)]
            group = 0
            if moment is None:
                group = int(owner.stdout.readline().split()[0])
                assert members(group)
            else:
                until(lambda p=Path(folder): any(p.iterdir()))
                time.sleep(moment)
            owner.kill()
            owner.communicate()
            until(lambda p=Path(folder): not any(p.iterdir()))
            until(lambda f=folder: not named(f))
            until(lambda g=group: not g or not members(g))


def named(folder):
    """The processes with a folder in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def test_nothing_outlives_an_owner_that_is_killed():
    kill_owners(3, (None, 0.0, 0.3))


def test_the_folder_of_an_owner_that_ends_before_it_hears_of_it_is_removed(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = ["sh", "-c", chromium._GUARD, "sh", str(tmp_path / "browser")]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL, timeout=30)
    os.close(writer)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_outlives_fifty_owners_that_are_killed():
    kill_owners(50, (None, 0.0, 0.02, 0.1, 0.3, 1.0))


def test_a_browser_is_shared_and_ends_with_its_last_user(pages):
    one, other = pages(), pages(visible=True)
    assert one.browser is other.browser
    assert one.evaluate("document.title = 'one'; 6 * 7") == 42
    assert other.evaluate("document.title") == ""
    assert one.evaluate("new Date(0).getHours()") == 0  # the clock of every page is UTC
    assert other.screenshot().startswith(b"\x89PNG")
    one.close()
    assert other.evaluate("1") == 1
    with pytest.raises(EnvError):
        one.evaluate("1")
    folder, group = Path(other.browser.folder), other.browser._process.pid
    assert folder.is_dir()
    chromium.acquire()
    chromium.release()
    assert not other.dead
    chromium.release()
    assert other.dead
    assert not folder.exists()
    assert not members(group)
    chromium.acquire()


def test_pages_are_used_again_and_none_is_closed(pages, tmp_path):
    (tmp_path / "a.html").write_text("<title>a</title>")
    (tmp_path / "b #1.html").write_text("<title>b</title>")
    folder = str(tmp_path)
    one, other, seen = (chromium.open_page(160, 210, visible, folder) for visible in (False, False, True))
    for page, document in ((one, "a.html"), (other, "b #1.html"), (seen, "a.html")):
        page.load(document)
        page.close()
        page.close()
    with pytest.raises(EnvError, match="this page is closed"):
        one.evaluate("1")
    again = chromium.open_page(160, 210, False, folder, document="a.html")
    assert (again.session, again.document) == (one.session, "a.html")
    assert again.evaluate("document.title") == "a"
    assert chromium.open_page(160, 210, False, folder, document="a.html").session == other.session
    unlike = chromium.open_page(160, 210, True, folder, "window.mine = 1")
    assert unlike.session not in (one.session, other.session, seen.session)
    assert len(again.browser.pages) == 4
    unlike.load("a.html", "window.mine += 1")
    assert unlike.evaluate("mine") == 2
    with pytest.raises(EnvError, match="threw: ReferenceError"):
        again.load("a.html", "nothing")
    assert again.document == ""
    with pytest.raises(EnvError, match="died"):
        unlike.call("Page.crash")
    unlike.close()
    assert chromium.open_page(160, 210, True, folder, "window.mine = 1").session != unlike.session


def test_a_browser_that_dies_while_a_page_is_opened_is_an_error_of_the_environment(pages, tmp_path, monkeypatch):
    gone = FileNotFoundError(2, "No such file or directory")

    def symlink(target, link):
        raise gone

    monkeypatch.setattr(os, "symlink", symlink)
    with pytest.raises(EnvError, match="cannot be given its files"):
        chromium.open_page(160, 210, False, str(tmp_path))
    assert pages().evaluate("1") == 1


def test_what_fails_in_a_page_is_an_error_with_its_reason(pages):
    page = pages()
    with pytest.raises(EnvError, match="ReferenceError: nothing"):
        page.evaluate("nothing")
    with pytest.raises(EnvError, match=r"such/page\.html cannot be loaded"):
        page.load("no/such/page.html")
    with pytest.raises(EnvError, match=r"refused No\.method"):
        page.call("No.method")
    assert page.evaluate("1") == 1


def test_pages_that_crash_cost_no_browser(pages):
    one, other = pages(), pages()
    with pytest.raises(EnvError, match="died"):
        one.call("Page.crash")
    assert one.dead
    with pytest.raises(EnvError, match="died"):
        one.evaluate("1")
    again = pages()
    assert again.browser is other.browser
    assert again.evaluate("1") == 1


def test_a_browser_that_dies_wakes_those_who_wait_and_is_replaced(pages):
    page, found = pages(), []

    def wait():
        try:
            page.evaluate("new Promise(() => {})")
        except EnvError as error:
            found.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: page.browser._waiting)
    os.killpg(page.browser._process.pid, signal.SIGKILL)
    thread.join(30)
    assert found == ["the browser or the page died"]
    again = pages()
    assert again.browser is not page.browser
    assert again.evaluate("1") == 1
    page.browser.stop()
    assert not Path(page.browser.folder).exists()


def test_a_browser_that_hangs_is_ended_at_its_deadline(pages, monkeypatch):
    page = pages()
    group = page.browser._process.pid
    os.killpg(group, signal.SIGSTOP)
    monkeypatch.setattr(chromium, "ANSWER_S", 0.2)
    with pytest.raises(EnvError, match="did not answer"):
        page.evaluate("1")
    monkeypatch.undo()
    until(lambda: not members(group))
    assert pages().evaluate("1") == 1


def test_a_page_of_the_parent_is_refused_after_a_fork(pages):
    page = pages()
    child = os.fork()
    if not child:
        try:
            page.evaluate("1")
        except EnvError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert page.evaluate("1") == 1


def test_a_missing_browser_is_named(monkeypatch):
    monkeypatch.setenv("AGENTGYM_CHROMIUM", "/no/such/browser")
    with pytest.raises(MissingDependency, match="AGENTGYM_CHROMIUM=/no/such/browser is no program"):
        chromium.program()
    monkeypatch.delenv("AGENTGYM_CHROMIUM")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependency, match="apt-get install chromium-headless-shell"):
        chromium.program()


def test_a_program_that_is_no_browser_does_not_start(monkeypatch):
    monkeypatch.setenv("AGENTGYM_CHROMIUM", "/bin/true")
    chromium.acquire()
    try:
        with pytest.raises(EnvError, match="/bin/true does not start"):
            chromium.open_page(160, 210, False)
    finally:
        chromium.release()
