"""The hybrid inference state: of sequences that advance together, and of a pool that many come and go in."""
