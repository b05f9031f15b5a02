"""Weights that are data and scale, in C++."""
