"""One training loop for every stage: schedule, optimizer, expert balance, checkpoints, metrics, parallelism."""
