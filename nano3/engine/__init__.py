"""Generation: continuous batching over a pool of states; one engine for serve, eval, bench, chat and RL."""
