"""Trainers, one file each: read top to bottom, from the paper to ``main``."""

if __name__ != "agentgym.trainers":
    raise ImportError("import this package as agentgym.trainers, not as a top-level module")
