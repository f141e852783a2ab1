"""Environments, one file each, registered as ``agentgym/Name-vN`` by ``import agentgym``."""

if __name__ != "agentgym.envs":
    raise ImportError("import this package as agentgym.envs, not as a top-level module")
