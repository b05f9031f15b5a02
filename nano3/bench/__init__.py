"""Measured speed and memory of the model on this machine."""
