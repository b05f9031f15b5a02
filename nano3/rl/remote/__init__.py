"""The engine protocol on servers: `nano3 serve` and vLLM, by their HTTP API alone."""
