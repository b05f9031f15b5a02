"""`nano3 bench`: its verbs."""
