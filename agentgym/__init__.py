"""Agent environments behind Gymnasium, and a multi-turn LLM agent trainer with exact tokens.

Importing this package registers every ``agentgym/...`` id with Gymnasium. It imports neither torch nor any
optional dependency; an environment imports its engine when it is made.
"""

import os

# Threads of torch that spin while they wait starve each other on a busy machine: with two threads on two cores and a
# neighbour, an update took 15 times as long as with one thread. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from agentgym.registration import register_envs

__version__ = "0.1.0"

register_envs()
