"""The engine protocol on vLLM, for machines with GPUs."""
