"""OpenAI's Responses API over the chat path, without stored state."""
