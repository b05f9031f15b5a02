"""What a run of reinforcement learning is made of: its environments, engine, profile, steps and stop rules."""
