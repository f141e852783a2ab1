"""Headless Chromium over the pipe of the DevTools protocol: one process for all pages of this Python process.

A small shell, the guard, waits for the end of a pipe whose other end is ours: when this process ends, killed or not, it
kills the browser with all its processes and removes its files. The browser ends by itself, too, when the pipe of
the protocol does.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import queue
import secrets
import select
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from agentgym.errors import EnvError, MissingDependency

ANSWER_S = 30.0
"""A call that the browser does not answer for so long counts as failed."""

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""Programs that are looked for, unless ``AGENTGYM_CHROMIUM`` is the path of one: the shells, which are Chromium without
windows, take half the CPU time to load a page and less than half the memory to draw it."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # root may not start it otherwise; the pages are files of an installed package
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--in-process-gpu",  # a process less
    "--host-resolver-rules=MAP * ~NOTFOUND",  # pages get nothing from the network
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    # without streamed scripts another document of the same kind takes an eighth less CPU time
    "--disable-features=SpareRendererForSitePerProcess,Translate,MediaRouter,PaintHolding,BackForwardCache,ScriptStreaming",
    "--font-render-hinting=none",
    "--disable-lcd-text",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--lang=en-US",
    "--mute-audio",
    "--process-per-site",  # a page more is 15 MB so, and 47 MB in a process of its own
)

_BROWSER = 'read -r _ || exit; exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
"""Waits for a line, so that no browser runs that the guard does not know."""

_GUARD = """
trap "" PIPE
mkdir -m 700 "$1" || exit
echo ready
read -r browser
read -r _
kill -9 -"$browser" 2>/dev/null
tries=0
until rm -rf "$1" 2>/dev/null || [ $tries = 300 ]; do tries=$((tries + 1)); sleep 0.1; done
"""
"""Makes the folder of the browser's files, reads the number of its process group; after that nothing ever comes but the
end. An owner that has ended already does not hear of the folder, which must be removed all the same. A process that is
being killed may still write for a moment, so the folder may have to be removed again."""

_lock = threading.RLock()
_current: Browser | None = None
_users = 0


def program() -> str:
    """Path of the browser.

    Raises:
        MissingDependency: There is none.
    """
    given = os.environ.get("AGENTGYM_CHROMIUM")
    for name in (given,) if given else NAMES:
        if path := shutil.which(name):
            return path
    where = f"AGENTGYM_CHROMIUM={given} is no program" if given else "Chromium is not installed"
    install = "apt-get install chromium-headless-shell (or chromium)"
    raise MissingDependency(f"{where}: {install}, or set AGENTGYM_CHROMIUM to the path of a browser")


def acquire() -> None:
    """Take a share in the browser, which starts with the first page that is opened."""
    global _users
    with _lock:
        _users += 1


def release() -> None:
    """Give a share back; the last one to do so ends the browser."""
    global _users
    with _lock:
        _users = max(0, _users - 1)
        if _users == 0 and _current is not None:
            _current.stop()


def open_page(width: int, height: int, visible: bool, folder: str = "", script: str = "", document: str = "") -> Page:
    """Open a page in the running browser, or in a new one if there is none or it died.

    Pages are used again. They share a process, and whenever one is really closed Chromium lets all others set up anew
    what they draw with: after a hundred at once it does nothing else for more than a minute.

    Args:
        width: Width of the page in pixels.
        height: Its height.
        visible: Whether screenshots will be taken: the page then has a window of its own.
        folder: What can be loaded. Each page sees it under an address of its own: of a file with the same address for
            all, Chromium keeps what was loaded last, and other pages load it once more, after they have shown it empty.
        script: Runs before the scripts of every document that will be loaded.
        document: A page that has this document, from an earlier use, is preferred; one that never had any is empty.

    Raises:
        MissingDependency: There is no browser.
        EnvError: It does not start, or fails.
    """
    global _current
    kind = (width, height, visible, folder, script)
    with _lock:
        if _current is None or _current.dead:
            _current = Browser()
        browser = _current
        browser.free = [page for page in browser.free if not page.dead]
        alike = [page for page in browser.free if page.kind == kind]
        free = next((page for page in alike if page.document == document), alike[-1] if alike else None)
        if free is not None:
            browser.free.remove(free)
            return Page(browser, kind, free)
    return Page(browser, kind)


class Browser:
    """A Chromium process.

    Attributes:
        dead: Whether it has ended or been given up.
        folder: Its files, which go with it.
        pages: Pages by the session of the protocol.
        free: Those that were closed and can be used again.
    """

    def __init__(self) -> None:
        path = program()
        self.dead, self.pages, self.free = False, dict[str, Page](), list[Page]()
        self.pid = os.getpid()
        self._lock, self._number = threading.Lock(), 0
        self._waiting: dict[int, tuple[str, queue.SimpleQueue[dict[str, Any] | None]]] = {}
        self.folder = os.path.join(tempfile.gettempdir(), f"chromium-{secrets.token_hex(6)}")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        life, self._life = os.pipe()
        os.set_blocking(self._write, False)
        quiet = {"stderr": subprocess.DEVNULL, "process_group": 0}  # Ctrl-C is for us, not for them
        try:
            self._guard = subprocess.Popen(
                ["sh", "-c", _GUARD, "sh", self.folder], stdin=life, stdout=subprocess.PIPE, **quiet
            )
            with self._guard.stdout as answer:
                if not answer.readline():
                    raise EnvError(f"cannot make {self.folder}")
            self._process = subprocess.Popen(
                ["sh", "-c", _BROWSER, "sh", path, *_FLAGS, f"--user-data-dir={self.folder}/data"],
                stdin=to_browser,
                stdout=from_browser,
                env={**os.environ, "TZ": "UTC", "LANGUAGE": "en_US", "TMPDIR": self.folder},
                **quiet,
            )
            os.write(self._life, f"{self._process.pid}\n".encode())
            os.write(self._write, b"\n")
        except BaseException as error:
            for end in (self._write, self._read, self._life):
                os.close(end)
            if isinstance(error, OSError):
                raise EnvError(f"cannot start {path}: {error}") from error
            raise
        finally:
            for end in (to_browser, from_browser, life):
                os.close(end)
        self._reader = threading.Thread(target=self._serve, daemon=True, name="agentgym-chromium")
        self._reader.start()
        try:
            self.call("Browser.getVersion")
        except EnvError as error:
            raise EnvError(f"{path} does not start: {error}") from error

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result.

        Raises:
            EnvError: The method failed, or the browser died or hung; then it is ended.
        """
        answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = (session, answers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        deadline = time.monotonic() + ANSWER_S
        try:
            self._send(json.dumps(message).encode() + b"\0", deadline)
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except (queue.Empty, TimeoutError):
            self.stop()
            raise EnvError(f"the browser did not answer {method} within {ANSWER_S:g} s and was ended") from None
        except OSError as error:
            self.stop()
            raise EnvError("the browser died") from error
        finally:
            self._waiting.pop(number, None)
        if answer is None:
            raise EnvError("the browser or the page died")
        if "error" in answer:
            raise EnvError(f"the browser refused {method}: {answer['error'].get('message')}")
        return answer["result"]

    def stop(self) -> None:
        """End the process at once, with all that it started and wrote."""
        global _current
        with _lock:
            if _current is self:
                _current = None
            first, self.dead = self._life >= 0, True
            if first:
                os.close(self._life)
                self._life = -1
        if first:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(ANSWER_S)
                self._process.wait(ANSWER_S)
            self._reader.join(ANSWER_S)
            with self._lock:
                os.close(self._write)
                self._write = -1
            os.close(self._read)

    def forget(self) -> None:
        """In a forked child: the browser is the parent's, and our copies of its pipes must not keep it alive."""
        for end in (self._life, self._write, self._read):
            if end >= 0:
                os.close(end)
        self._life, self.dead = -1, True

    def _send(self, data: bytes, deadline: float) -> None:
        with self._lock:
            while data:
                if self.dead or self._write < 0:
                    raise BrokenPipeError("the browser has ended")
                if not select.select([], [self._write], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise TimeoutError
                data = data[os.write(self._write, data) :]

    def _serve(self) -> None:
        """Hand out answers until the pipe ends."""
        left = b""
        while part := os.read(self._read, 1 << 20):
            *lines, left = (left + part).split(b"\0")
            for line in lines:
                self._take(json.loads(line))
        self.dead = True
        for page in list(self.pages.values()):
            page.loaded.put(None)
        self._fail(None)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            waiting = self._waiting.get(message["id"])
            if waiting:
                waiting[1].put(message)
            return
        method, params = message.get("method"), message.get("params", {})
        session = params.get("sessionId") if method == "Target.detachedFromTarget" else message.get("sessionId")
        page = self.pages.get(session or "")
        if page is None:
            return
        if method == "Page.loadEventFired":
            page.loaded.put(None)
        elif method in ("Inspector.targetCrashed", "Target.detachedFromTarget"):
            page.crashed = True
            page.loaded.put(None)
            self._fail(session)

    def _fail(self, session: str | None) -> None:
        """Wake those who wait for an answer of a session, or of any."""
        for waiting, answers in list(self._waiting.values()):
            if session in (None, waiting):
                answers.put(None)


class Page:
    """A page of the shared browser, from `open_page` to `close`.

    Attributes:
        kind: The arguments of `open_page` that it was opened with.
        document: The document that is loaded, a path in the folder; empty while there is none.
        crashed: Whether the page has crashed.
        closed: Whether it was closed: another may use it now.
        loaded: Filled by the reader when a document is loaded, or never will be.
    """

    def __init__(self, browser: Browser, kind: tuple[int, int, bool, str, str], used: Page | None = None) -> None:
        self.browser, self.kind, self.document = browser, kind, used.document if used else ""
        self.crashed = self.closed = False
        self.loaded: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.session = used.session if used else self._open()
        browser.pages[self.session] = self
        if used:
            return
        width, height, _, folder, script = kind
        if folder:
            try:
                os.symlink(folder, self._link)
            except OSError as error:  # a browser that has just died took its folder along
                raise EnvError(f"a page cannot be given its files: {error}") from error
        self.call("Page.enable")
        self.call("Inspector.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if script:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def _open(self) -> str:
        width, height, visible, *_ = self.kind
        size = {"width": width, "height": height} if visible else {}
        target = self.browser.call("Target.createTarget", url="about:blank", newWindow=visible, **size)["targetId"]
        return self.browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    @property
    def _link(self) -> Path:
        return Path(self.browser.folder, self.session)

    @property
    def dead(self) -> bool:
        """Whether it has crashed, or the browser is gone."""
        return self.crashed or self.browser.dead

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page.

        Raises:
            EnvError: It failed.
        """
        if self.browser.pid != os.getpid():
            raise EnvError("this page was opened before a fork: make the environment in the process that uses it")
        if self.closed:
            raise EnvError("this page is closed")
        if self.dead:
            raise EnvError("the browser or the page died")
        return self.browser.call(method, self.session, **params)

    def load(self, document: str, ready: str = "") -> None:
        """Load a document and wait until it is there.

        Args:
            document: A path in the folder of `open_page`.
            ready: An expression that is evaluated then, before the document counts as loaded.

        Raises:
            EnvError: It cannot be loaded, or the expression threw.
        """
        self.document, address = "", (self._link / document).as_uri()
        while not self.loaded.empty():
            self.loaded.get()
        if problem := self.call("Page.navigate", url=address).get("errorText"):
            raise EnvError(f"{document} cannot be loaded: {problem}")
        try:
            self.loaded.get(timeout=ANSWER_S)
        except queue.Empty:
            self.browser.stop()
            raise EnvError(f"{document} did not load within {ANSWER_S:g} s") from None
        if self.dead:
            raise EnvError(f"the browser or the page died while {document} was loaded")
        if ready:
            self.evaluate(ready)
        self.document = document

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of its promise, which must be one that JSON can hold.

        Raises:
            EnvError: It threw, or the page died or hung.
        """
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            reason = details.get("exception", {}).get("description") or details.get("text")
            raise EnvError(f"a script of the page threw: {reason}")
        return result["result"].get("value")

    def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", optimizeForSpeed=True)["data"])

    def close(self) -> None:
        """Leave the page to the next one who opens one like it. Safe to call again."""
        with _lock:
            if not self.closed and self.browser.pid == os.getpid():
                self.browser.free.append(self)
            self.closed = True


def _stop() -> None:
    if _current is not None:
        _current.stop()


def _forget() -> None:
    global _current, _lock, _users
    if _current is not None:
        _current.forget()
    _current, _lock, _users = None, threading.RLock(), 0


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
