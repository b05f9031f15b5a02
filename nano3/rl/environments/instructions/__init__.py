"""Instruction following: the rules that an answer can be checked by, and the environment that rewards them."""
