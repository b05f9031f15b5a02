"""How the processes of a run divide the work on one model: shards, experts, slices of sequences."""
