"""Measurements on one device: its timer, its ceilings, the blocks of a decoding step, and the rows of a session."""
