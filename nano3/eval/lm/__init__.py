"""lm-evaluation-harness on nano3's engine or on a server: its tasks, our own small ones, and their scores."""
