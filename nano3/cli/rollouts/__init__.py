"""Saved rollouts of a run: to browse, and to measure again."""
