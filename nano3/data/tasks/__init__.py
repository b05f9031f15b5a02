"""Tasks that nano3 makes itself: worked examples for SFT, and the same tasks with a check for RL and evaluation.

A task is a conversation to answer, its ground truth, and a solution with its reasoning. It depends on the generator,
the seed and its index alone, so it can be made anew anywhere. `nano3.data.tasks.catalogue` finds generators by name.
"""
