"""Chat answers: from a request to a prompt, and from the engine's output to messages and streams."""
