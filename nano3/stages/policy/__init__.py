"""What the stages of reinforcement learning share: scores of held-out tasks, and results."""
