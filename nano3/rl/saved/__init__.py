"""Saved rollouts: to look at, to count, and to measure again."""
