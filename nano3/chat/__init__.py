"""Text at the terminal: conversations with a local model or a server, and prompts continued for scripts."""
