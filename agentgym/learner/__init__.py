"""The learner: from trajectories with advantages to a weight update."""
