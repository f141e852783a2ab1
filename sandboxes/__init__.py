"""Sandboxes for tool calls. The backends come with the sandbox work; nothing is here yet."""

if __name__ != "agentgym.sandboxes":
    raise ImportError("import this package as agentgym.sandboxes, not as a top-level module")
