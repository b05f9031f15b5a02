"""Libraries that may hang or crash, in a process that can be killed."""
