"""Search engines: what they find, and that a failure is an error with a type, never an empty list."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from agentgym.envs import retrieval_index, search_corpus
from agentgym.envs.retrieval import Document, SearchError, SearchTimeout, open_retriever
from agentgym.envs.retrieval_http import SerperRetriever, WikipediaRetriever
from agentgym.envs.retrieval_index import LocalIndex, build_index, corpus_folder, open_corpus, words
from agentgym.envs.search_facts import FACTS, load

from agentgym.errors import ConfigError, EnvError, MissingDependency

DOCUMENTS = [
    Document("Chad", "a:chad#capital", "The capital is N'Djamena."),
    Document("Chad", "a:chad#rivers", "The Chari flows into the lake."),
    Document("Brazil", "a:brazil", "São Paulo is the largest city of Brazil; the capital is Brasília."),
    Document("Lake", "a:lake", "A lake is a body of water."),
]


@pytest.fixture(params=["fts5", "tantivy", "memory"])
def index(request, tmp_path):
    """An index of `DOCUMENTS` with each engine."""
    if request.param == "memory":
        made = LocalIndex.in_memory(DOCUMENTS)
    else:
        if request.param == "tantivy":
            pytest.importorskip("tantivy")
        assert build_index(iter(DOCUMENTS), tmp_path / "index", request.param) == 4
        made = LocalIndex(tmp_path / "index")
        assert made.engine == request.param
    yield made
    made.close()


# ---- the local index -------------------------------------------------------------------------------------


def test_finds_best_first(index):
    assert index.count == 4
    assert index.search("capital of Chad", 2)[0] == DOCUMENTS[0]
    assert [d.title for d in index.search("Chad", 5)] == ["Chad", "Chad"]
    assert len(index.search("capital lake", 3)) == 3
    assert len(index.search("capital lake", 1)) == 1


def test_words_are_stemmed_and_accents_do_not_matter(index):
    assert index.search("sao paulo")[0] == DOCUMENTS[2]
    assert index.search("BRASILIA")[0] == DOCUMENTS[2]
    assert index.search("bodies of water lakes")[0] == DOCUMENTS[3]


@pytest.mark.parametrize(
    "query",
    ['"Chad', "Chad (", "title:Chad", "Chad AND", "NOT Chad", "Chad*", "Chad^2", "{Chad TO x}", "Chad -lake", "'Chad'"],
)
def test_nothing_in_a_query_is_an_operator(index, query):
    assert "Chad" in {document.title for document in index.search(query)}


def test_odd_queries(index):
    for query in ("", " ", "!?", "\ud800", "\x00", "日本"):
        assert index.search(query) == []
    assert len(index.search("the of a" * 5000)) <= 5
    assert index.search("lake " + " ".join(f"w{i}" for i in range(5000)))[0] == DOCUMENTS[3]
    with pytest.raises(ConfigError, match="k is 0"):
        index.search("lake", 0)


def test_words():
    assert words("What is the capital of Chad? The CAPITAL!") == ["capital", "chad"]
    assert words("Who is it?") == ["who", "is", "it"]


def test_pages(index):
    page = Document("Chad", "a:chad", "The capital is N'Djamena.\n\nThe Chari flows into the lake.")
    assert index.page("a:chad") == page
    assert index.page("a:chad#rivers") == page
    assert index.page("a:brazil").text == DOCUMENTS[2].text
    assert index.page("a:nowhere") is None
    assert index.page("\ud800") is None


def test_title_of_a_page_is_what_its_passages_share():
    passages = [Document(f"Chad: {part}", f"a:chad#{part}", part) for part in ("Capital", "Coast")]
    index = LocalIndex.in_memory([*passages, Document("Other", "a:other", "x")])
    assert index.page("a:chad").title == "Chad"
    index.close()


def test_threads_search_at_the_same_time(index):
    found, threads = [], []
    for _ in range(4):
        threads.append(
            threading.Thread(target=lambda: found.extend(index.search("capital of Chad", 1)[0] for _ in "x" * 50))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DOCUMENTS[0]] * 200


def test_closed(index):
    index.close()
    index.close()
    for call in (lambda: index.search("lake"), lambda: index.page("a:lake")):
        with pytest.raises(SearchError, match="closed"):
            call()


def test_a_missing_index_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path))
    for call in (lambda: open_corpus("world"), lambda: load(corpus_folder("world") / FACTS)):
        with pytest.raises(MissingDependency, match=r"python -m agentgym\.envs\.search_corpus"):
            call()
    with pytest.raises(ConfigError, match=r"corpus '../x'"):
        open_corpus("../x")


@pytest.mark.parametrize("engine", retrieval_index.ENGINES)
@pytest.mark.parametrize("harm", ["no manifest", "half a manifest", "other version", "half a database", "other count"])
def test_a_broken_index_is_refused(tmp_path, engine, harm):
    if engine == "tantivy":
        pytest.importorskip("tantivy")
    folder = tmp_path / "index"
    build_index(iter(DOCUMENTS), folder, engine)
    about = folder / "index.json"
    if harm == "no manifest":
        about.unlink()
    elif harm == "half a manifest":
        about.write_text(about.read_text()[:20])
    elif harm == "other version":
        about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))
    elif harm == "other count":
        about.write_text(json.dumps({**json.loads(about.read_text()), "documents": 5}))
    else:
        database = folder / "documents.sqlite"
        database.write_bytes(database.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"build it again with 'python -m agentgym\.envs\.search_corpus --again'"):
        LocalIndex(folder)
    assert build_index(iter(DOCUMENTS), folder, engine) == 4
    LocalIndex(folder).close()


def test_tantivy_that_is_gone(tmp_path, monkeypatch):
    pytest.importorskip("tantivy")
    build_index(iter(DOCUMENTS), tmp_path / "index", "tantivy")
    monkeypatch.setattr(retrieval_index, "tantivy", None)
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[search\]"):
        LocalIndex(tmp_path / "index")
    with pytest.raises(MissingDependency, match=r"agentgym-lab\[search\]"):
        build_index(iter(DOCUMENTS), tmp_path / "other", "tantivy")
    build_index(iter(DOCUMENTS), tmp_path / "index", "auto")
    assert LocalIndex(tmp_path / "index").engine == "fts5"


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    folder = tmp_path / "index"
    build_index(iter(DOCUMENTS), folder, "fts5")

    def failing():
        yield DOCUMENTS[0]
        raise RuntimeError("read error")

    with pytest.raises(RuntimeError, match="read error"):
        build_index(failing(), folder, "fts5")
    assert LocalIndex(folder).count == 4
    with pytest.raises(ConfigError, match="no documents"):
        build_index(iter(()), tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["index"]


_KILLED = """
import sys, time
from pathlib import Path
from agentgym.envs.retrieval import Document
from agentgym.envs.retrieval_index import build_index

def slow():
    for number in range(10**9):
        if number == 1000:
            print("half-way", flush=True)
        yield Document(f"t{number}", f"u{number}", "text " * 20)

build_index(slow(), Path(sys.argv[1]), "fts5")
"""


def test_a_build_that_is_killed_leaves_nothing_that_is_opened(tmp_path):
    folder = tmp_path / "index"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "half-way\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / ".index.building").is_dir()
    with pytest.raises(MissingDependency, match="search_corpus"):
        LocalIndex(folder)
    assert build_index(iter(DOCUMENTS), folder, "fts5") == 4
    assert not (tmp_path / ".index.building").exists()
    assert LocalIndex(folder).count == 4


def test_a_corpus_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGENTGYM_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "passages.jsonl"
    rows = [{"title": "Chad", "text": "In Africa.", "url": "u:1"}, {"id": 7, "contents": '"Peru"\nIn South America.'}]
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert search_corpus.main(["--from", str(source), "--name", "mine"]) == 0
    assert "2 passages" in capsys.readouterr().out
    with contextlib.closing(open_retriever("local", "mine")) as index:
        assert index.search("america") == [Document("Peru", "7", "In South America.")]
    assert search_corpus.main(["--from", str(source), "--name", "mine"]) == 0
    assert "it was there" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no questions to the corpus mine"):
        load(corpus_folder("mine") / FACTS)
    source.write_text('{"title": "Chad", "text": "x"}\n{"title": "Peru"}\n')
    assert search_corpus.main(["--from", str(source), "--name", "other"]) == 2
    assert "line 2" in capsys.readouterr().err
    assert search_corpus.main(["--from", str(source)]) == 2
    assert "--name" in capsys.readouterr().err
    assert not corpus_folder("other").exists()


# ---- servers ---------------------------------------------------------------------------------------------


class Server:
    """A server on this machine that answers as it is told."""

    def __init__(self):
        self.asked, self.answers = [], []
        self._end = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                self.asked.append((json.loads(body), dict(handler.headers)))
                status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if status == "hang":
                    self._end.wait(30)
                    return
                handler.send_response(status if isinstance(status, int) else 200)
                handler.end_headers()
                if status == "drip":
                    while not self._end.wait(0.05):
                        try:
                            handler.wfile.write(b" ")
                        except OSError:
                            return
                handler.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(handler, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/retrieve"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self):
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(params=["wikipedia", "serper"])
def retriever(request, server, monkeypatch):
    """Each kind, asking the server."""
    monkeypatch.setenv("SERPER_API_KEY", "sesame")
    if request.param == "wikipedia":
        return WikipediaRetriever(server.url, timeout=0.5)
    return SerperRetriever(timeout=0.5, url=server.url)


def test_search_r1_server(server):
    passages = [{"document": {"id": "3", "contents": '"Chad"\nIn Africa.\nLarge.'}, "score": 0.9}]
    passages += [{"document": {"id": "4", "title": "Peru", "text": "In America.", "contents": "x", "url": "w:Peru"}}]
    server.answers = [(200, {"result": [passages]})]
    retriever = open_retriever(server.url)
    assert retriever.search("where is Chad", 2) == [
        Document("Chad", "", "In Africa.\nLarge."),
        Document("Peru", "w:Peru", "In America."),
    ]
    assert server.asked[0][0] == {"queries": ["where is Chad"], "topk": 2, "return_scores": True}
    assert len(retriever.search("where is Chad", 1)) == 1
    server.answers = [(200, {"result": [[{"id": "3", "contents": "Chad\nIn Africa."}]]})]  # without scores
    assert retriever.search("Chad") == [Document("Chad", "", "In Africa.")]
    retriever.close()


def test_serper(server, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "sesame")
    organic = [{"title": f"t{i}", "link": f"https://x/{i}", "snippet": f"s{i}", "position": i} for i in range(10)]
    del organic[1]["snippet"]
    server.answers = [(200, {"searchParameters": {}, "organic": organic})]
    found = SerperRetriever(url=server.url).search("Chad", 5)
    assert found[0] == Document("t0", "https://x/0", "s0")
    assert (len(found), found[1].text) == (5, "")
    asked, headers = server.asked[0]
    assert asked == {"q": "Chad", "gl": "us", "hl": "en", "num": 10}
    assert {key.lower(): value for key, value in headers.items()}["x-api-key"] == "sesame"


def test_serper_without_a_key(monkeypatch):
    for key in ("", " ", "a\nb"):
        monkeypatch.setenv("SERPER_API_KEY", key)
        with pytest.raises(ConfigError, match="SERPER_API_KEY"):
            open_retriever("serper")
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(ConfigError, match="SERPER_API_KEY"):
        open_retriever("serper")


def test_nothing_found_is_no_error(server, retriever):
    server.answers = [(200, {"result": [[]], "organic": []})]
    assert retriever.search("xyzzy") == []
    assert retriever.search(" ") == []
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((500, b"out of memory"), "500 .*out of memory"),
        ((404, b""), "404"),
        ((403, {"message": "Unauthorized"}), "403 .*Unauthorized"),
        ((200, b"<html>"), "JSON"),
        ((200, b""), "JSON"),
        ((200, b"[" * 100_000), "JSON"),
        ((200, {"error": "x"}), "another form"),
        ((200, []), "another form"),
        ((200, None), "another form"),
        ((200, {"result": [], "organic": "x"}), "another form"),
        ((200, {"result": [{"a": 1}], "organic": {"a": 1}}), "another form"),
        ((200, {"result": [[1]], "organic": [1]}), "another form"),
        ((200, {"result": [[{"document": {"contents": 5}}]], "organic": [{"link": "x"}]}), "another form"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_server_that_fails_or_answers_nonsense(server, retriever, answer, word):
    server.answers = [answer]
    with pytest.raises(SearchError, match=word) as caught:
        retriever.search("Chad")
    assert isinstance(caught.value, EnvError)
    assert not isinstance(caught.value, SearchTimeout)
    assert server.url in str(caught.value)


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_is_too_slow(server, retriever, how):
    server.answers = [(how, b"")]
    with pytest.raises(SearchTimeout, match=r"0\.5 s"):
        retriever.search("Chad")


def test_a_busy_server_is_asked_again(server):
    server.answers = [(503, b""), (200, {"result": [[]]})]
    assert WikipediaRetriever(server.url, timeout=20).search("Chad") == []
    assert len(server.asked) == 2
    server.answers = [(429, b"slow down")]
    with pytest.raises(SearchError, match=r"429 .*slow down"):
        WikipediaRetriever(server.url, timeout=0.2).search("Chad")


def test_a_server_that_is_not_there(server):
    server.close()
    with pytest.raises(SearchError, match="cannot be reached"):
        WikipediaRetriever(server.url).search("Chad")


def test_unknown_retrievers():
    with pytest.raises(ConfigError, match=r"retriever 'lucal'.*local"):
        open_retriever("lucal")
    with pytest.raises(ConfigError, match="timeout"):
        open_retriever("local", "tiny", timeout=0)
