"""What of `agentgym.envs.data_science` runs inside the box, as source text; and the checks of what comes out."""

from __future__ import annotations

import re

import numpy as np

DRIVER = """
import ast, contextlib, glob, linecache, os, random, sys, textwrap, traceback, warnings
import numpy, sklearn.base

def _labels_at_hand():
    return bool(glob.glob(os.path.join(os.path.dirname(sklearn.__file__), "datasets", "data", "*.csv*")))

@contextlib.contextmanager
def _shown():
    warnings.simplefilter("ignore")
    try:
        yield
    except BaseException as error:
        told = traceback.TracebackException.from_exception(error)
        for frame in told.stack:
            if frame.filename == "program.py" and frame.line:
                print(f"line {frame.lineno}: {frame.line}")
        print("".join(told.format_exception_only()).strip())
        sys.stdout.flush()
        raise SystemExit(1) from None

def _function(source):
    tree = ast.parse(textwrap.dedent(source), "program.py")
    if not any(isinstance(node, ast.FunctionDef) and node.name == "build_model" for node in tree.body):
        whole = ast.parse("def build_model(X_train, y_train):\\n    return model", "program.py")
        whole.body[0].body[:0] = tree.body
        tree = ast.fix_missing_locations(whole)
    names = {"__name__": "program"}
    exec(compile(tree, "program.py", "exec"), names)
    return names["build_model"]

def _fit():
    global _model
    with _shown():
        source = open("program.py", encoding="utf-8").read()
        linecache.cache["program.py"] = (len(source), None, source.splitlines(True), "program.py")
        random.seed(0)
        numpy.random.seed(0)
        _model = _function(source)(numpy.load("X_train.npy"), numpy.load("y_train.npy"))
        if not isinstance(_model, sklearn.base.BaseEstimator):
            raise TypeError(f"build_model returned {type(_model).__name__}, not a scikit-learn model")
        if not hasattr(_model, "predict_proba"):
            raise TypeError(f"the model {type(_model).__name__} has no predict_proba")

def _predict(classes):
    with _shown():
        X = numpy.load("X_test.npy")
        given = numpy.asarray(_model.predict_proba(X), dtype="<f8")
        if given.shape != (len(X), len(_model.classes_)):
            raise ValueError(f"predict_proba gave an array of shape {given.shape}")
        found = numpy.zeros((len(X), classes))
        found[:, numpy.asarray(_model.classes_, dtype=int)] = given
        found.astype("<f8").tofile("probabilities.bin")
"""
"""Defines ``_fit`` and ``_predict`` in an interpreter session; both print what the agent's code did wrong."""

_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_MOST_SHOWN = 1500


def shown(output: str) -> str:
    """The end of what a program printed, the same in every process."""
    text = _ADDRESS.sub("0x...", output.strip())
    return text if len(text) <= _MOST_SHOWN else f"...{text[-_MOST_SHOWN:]}"


def probabilities(data: bytes, rows: int, classes: int) -> np.ndarray:
    """Read the numbers that came out of a box, which may be anything.

    Args:
        data: The bytes of ``probabilities.bin``.
        rows: Rows that were to be predicted.
        classes: Number of classes.

    Returns:
        float64 of shape ``[rows, classes]``; rows sum to 1.

    Raises:
        ValueError: If they are no such numbers.
    """
    if len(data) != rows * classes * 8:
        raise ValueError(f"the probabilities are no {rows} rows of {classes} numbers")
    found = np.frombuffer(data, "<f8").reshape(rows, classes)
    if not np.isfinite(found).all() or found.min() < 0 or not np.allclose(found.sum(axis=1), 1, atol=1e-6):
        raise ValueError("the probabilities of a row are not numbers of 0 or more with a sum of 1")
    return found / found.sum(axis=1, keepdims=True)
