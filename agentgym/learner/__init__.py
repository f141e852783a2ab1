"""The learner: packed rows, log-probabilities, losses, one optimizer step, checkpoints, a tiny model."""
