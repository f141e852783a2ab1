"""Agent environments behind Gymnasium, and a multi-turn LLM agent trainer with exact tokens.

Importing this package registers every ``agentgym/...`` id with Gymnasium. It imports neither torch nor any
optional dependency; an environment imports its engine when it is made.
"""

from agentgym.registration import register_envs

__version__ = "0.1.0"

register_envs()
