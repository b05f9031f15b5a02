"""Passes through blocks in pieces, so that training on long sequences needs little memory."""
