"""Structured output: what a grammar may cost, and the masks that hold the model to it."""
