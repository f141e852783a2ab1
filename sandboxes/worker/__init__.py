"""The program inside a box: its first process, which answers calls on standard input and output.

It is sent as source text to ``python3 -I -c``, so it uses the standard library alone (Python 3.9 or newer), and any
image with an interpreter will do. The agent's code never runs in this process: a call is a fork, and the interpreter
session is a fork that lives on.
"""
