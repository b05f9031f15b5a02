"""`nano3 data`: its verbs."""
