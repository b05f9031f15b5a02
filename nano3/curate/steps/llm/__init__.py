"""Steps that ask a language model, and what judges its replies."""
