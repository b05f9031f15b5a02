"""The OpenAI-compatible server over a generation engine."""
