"""Speaking to OpenAI-compatible servers: one address, key, retry and error message for all that do."""
