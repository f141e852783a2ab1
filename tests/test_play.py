"""Playing in a real terminal: a person types, a policy plays, and every way out is clean."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentgym import cli

TESTS = Path(__file__).parent
GOOD = "helpers_broken_envs:broken/Good-v0"


class Terminal:
    """The command line in a pseudo-terminal."""

    def __init__(self, *arguments, ignored=()):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            for kind in ignored:
                signal.signal(kind, signal.SIG_IGN)
            os.environ.update(PYTHONPATH=str(TESTS), TERM="dumb")
            os.execv(sys.executable, [sys.executable, "-m", "agentgym.cli", *arguments])
        self.seen = ""
        self.read = 0

    def until(self, text, timeout=60):
        """Return what came since the last time, up to and with this text."""
        deadline = time.monotonic() + timeout
        while text not in self.seen[self.read :]:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    self.seen += os.read(self.fd, 1 << 16).decode().replace("\r\n", "\n")
                except OSError:  # the other side is gone
                    break
        assert text in self.seen[self.read :], self.seen
        start, self.read = self.read, self.seen.index(text, self.read) + len(text)
        return self.seen[start : self.read]

    def ready(self):
        """Wait until the program waits for a key: CPython loses a signal between the prompt and its wait."""
        quiet, deadline = 0, time.monotonic() + 60
        while quiet < 5:
            assert time.monotonic() < deadline, "the program never waited for a key"
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            quiet = quiet + 1 if state == "S" else 0
            time.sleep(0.02)

    def type(self, text):
        self.ready()
        os.write(self.fd, text.encode())

    def end(self):
        """Wait for the program and return its exit code."""
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return self.code


@pytest.fixture
def play():
    """Start the command line; what still runs when the test ends is killed."""
    started = []

    def start(*arguments, ignored=()):
        started.append(Terminal("play", *arguments, ignored=ignored))
        return started[-1]

    yield start
    for terminal in started:
        if not hasattr(terminal, "code"):
            os.kill(terminal.pid, signal.SIGKILL)
            terminal.end()


def test_a_person_wins(play):
    terminal = play(GOOD, "--seed", "0")
    start = terminal.until("> ")
    assert start.startswith("Say the colour that is named.\nType a command. ? lists the commands, q quits.\n\n")
    assert "A new game. Say green." in start
    terminal.type("?\n")
    assert "  coral\n  ecru\n  fawn\n  green\n  pass\n" in terminal.until("\n> ")
    terminal.type("\n")
    assert "No." not in terminal.until("> ")
    terminal.type("blue\n")
    assert "No. Say green.\n> " in terminal.until("\n> ")
    for number, word in enumerate(("green", "fawn", "ecru", "coral"), 1):
        terminal.type(f"{word}\n")
        assert f"  [reward 1, score {number} of 5]\n> " in terminal.until("\n> ")
    terminal.type("coral\n")
    assert "Right. The end.\n  [reward 1, score 5 of 5]\n" in terminal.until("success")
    assert "The episode is over: return 5 after 6 steps, success" in terminal.seen
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("how", "said", "code"),
    [
        ("q\n", "You quit: return 0 after 1 step, no success", 0),
        ("\x04", "You quit: return 0 after 1 step, no success", 0),
        ("\x03", "Interrupted: return 0 after 1 step", 130),
        ("half a comm\x03", "Interrupted: return 0 after 1 step", 130),
    ],
)
def test_ways_out(play, how, said, code):
    terminal = play(GOOD)
    terminal.until("> ")
    terminal.type("pass\n")
    terminal.until("\n> ")
    terminal.type(how)
    terminal.until(said)
    assert terminal.end() == code
    assert "Traceback" not in terminal.seen


@pytest.mark.parametrize("ignored", [(), (signal.SIGINT,)], ids=["usual", "in the background of a script"])
def test_a_terminated_program_says_so(play, ignored):
    terminal = play(GOOD, ignored=ignored)
    terminal.until("> ")
    terminal.ready()
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.until("Interrupted: return 0 after 0 steps")
    assert terminal.end() == 130


@pytest.mark.java
def test_a_real_game_ends_with_its_java(play):
    terminal = play("agentgym/TextWorldExpress-v0", "--set", "env.kwargs.game=simonsays")
    terminal.until("Simon says, 'smell pineapple'.")
    children = subprocess.run(["ps", "--ppid", str(terminal.pid), "-o", "pid=,comm="], capture_output=True, text=True)
    assert "java" in children.stdout
    terminal.until("> ")
    terminal.type("\x03")
    terminal.until("Interrupted")
    assert terminal.end() == 130
    assert not Path(f"/proc/{children.stdout.split()[0]}/cmdline").exists()


def test_input_may_come_from_a_file_and_output_go_to_one():
    done = subprocess.run(
        [sys.executable, "-m", "agentgym.cli", "play", GOOD],
        input="green\nfawn\n",
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "You quit: return 2 after 2 steps, no success" in done.stdout


def test_a_policy_plays(capsys):
    assert cli.main(["play", GOOD, "--policy", "expert"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Say the colour that is named.\nAnswer with one command and nothing else.\n\nA new game.")
    assert "\n> green\n  [reward 1]\n\nRight. Say fawn.\n> fawn\n" in out
    assert out.endswith("Right. The end.\n\nexpert, done: return 5 after 5 steps, success\n")
    assert cli.main(["play", GOOD, "--policy", "canned:maybe", "--set", "rollout.codec=tagged"]) == 0
    assert "> <action>maybe</action>\n\nNo. Say green." in capsys.readouterr().out
    assert cli.main(["play", GOOD, "--policy", "random", "--seed", "7"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["play", GOOD, "--policy", "random", "--seed", "7"]) == 0
    assert capsys.readouterr().out == first
    assert cli.main(["play", GOOD, "--policy", "random", "--seed", "8"]) == 0
    assert capsys.readouterr().out != first


def test_a_model_plays(tmp_path, capsys):
    from helpers_policies import tiny_model

    model, tokenizer = tiny_model(hidden=16, layers=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    limits = ["rollout.max_new_tokens=4", "rollout.context_limit=800", "rollout.max_turns=3"]
    assert cli.main(["play", GOOD, "--policy", f"hf:{tmp_path}", "--set", *limits]) == 0
    out = capsys.readouterr().out
    assert out.count("\n> ") >= 1
    assert f"\n\nhf:{tmp_path}, " in out


def test_a_text_cannot_move_the_cursor(capsys, monkeypatch):
    import helpers_broken_envs as broken

    monkeypatch.setattr(broken.Good, "instructions", "\x1b[2J\x07 half \ud800 a pair\x9b1m")
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    assert cli.main(["play", GOOD]) == 0
    assert capsys.readouterr().out.startswith("�[2J� half � a pair�1m\n")


def test_an_environment_that_breaks_is_one_line(capsys):
    fault = ["play", "helpers_envs:test/Fault-v0", "--policy", "random", "--set", "env.kwargs.fault=raise"]
    assert cli.main(fault) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "agentgym: error: the episode failed: env_error: reset raised RuntimeError: it broke\n"


def test_an_environment_gets_no_option_that_was_not_given(capsys):
    strict = "helpers_broken_envs:broken/Strict-v0"
    assert cli.main(["play", strict, "--policy", "expert"]) == 0
    assert cli.main(["check", strict, "--json"]) == 0
    assert (
        cli.main(["play", strict, "--policy", "expert", "--set", "env.options.split=train", "rollout.retries=0"]) == 2
    )
    assert "unknown options ['split']" in capsys.readouterr().err
