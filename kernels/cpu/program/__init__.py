"""A model's whole decoding step as one C++ call: its weights, its memory, and its check against the reference."""
