"""Conversations as token ids: messages, chat templates, and the marks inside a rendered conversation."""
