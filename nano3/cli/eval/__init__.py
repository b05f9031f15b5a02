"""`nano3 eval`: its verbs."""
