"""CRAFT-GUI's rewards of one reply, and that of GUI-R1 to compare with. Plain functions of numbers.

    R = w_f F + F (w_t T + w_a T A)                   an action on a screen: format, type, argument
    R = w_f F + (1 − w_f) F J                         an answer to a question about a screen, J from a judge
    R = 0.2 F + 0.8 accuracy                          GUI-R1 (2504.10458), in its public code

T and A count only in a readable reply, A only under the right type: without those gates a policy collects w_f for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

WEIGHTS = (0.1, 0.3, 0.6)
"""w_f, w_t and w_a where nothing else is said; those of the paper are not known."""


def operation_reward(
    valid: bool, right_type: bool, argument: float, weights: tuple[float, float, float] = WEIGHTS
) -> float:
    """R of an action, 0 to 1.

    Args:
        valid: F, whether the reply could be read.
        right_type: T, whether the action is of the right type.
        argument: A, how right its arguments are, 0 to 1.
        weights: w_f, w_t, w_a.
    """
    w_f, w_t, w_a = weights
    return valid * (w_f + right_type * (w_t + w_a * argument))


def understanding_reward(valid: bool, judged: float, format_weight: float = WEIGHTS[0]) -> float:
    """R of an answer, 0 to 1.

    Args:
        valid: F, whether the reply could be read.
        judged: J, how right the answer is, 0 to 1.
        format_weight: w_f.
    """
    return valid * (format_weight + (1 - format_weight) * judged)


def gui_r1_reward(valid: bool, accurate: bool) -> float:
    """GUI-R1's reward, 0 to 1.

    A right action in a bad format still earns 0.8. Accuracy is `agentgym.envs.android_evaluators.gui_r1_accuracy`: of
    all types but click, type and scroll nothing but the type is compared, not even the name of the app to open.
    """
    return (2 * valid + 8 * accurate) / 10


def episode_reward(turns: Sequence[float], outcome: float, outcome_weight: float = 0.0) -> float:
    """R of an episode: (1 − w_o) times the mean of its turns' R, plus w_o times its outcome.

    Args:
        turns: R of each turn.
        outcome: What the environment paid in the episode.
        outcome_weight: w_o, 0 to 1.
    """
    return (1 - outcome_weight) * sum(turns) / len(turns) + outcome_weight * outcome
