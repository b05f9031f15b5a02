"""A model's text as it arrives, taken apart: thinking, answer, tool calls and their values by the tools' schemas."""
