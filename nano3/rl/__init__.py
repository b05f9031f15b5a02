"""Reinforcement learning: rollout weights, and what they are checked against (report section 3.2)."""
