"""Evaluation: RULER to a million tokens, lm-eval tasks, expert shares, and stages side by side."""
