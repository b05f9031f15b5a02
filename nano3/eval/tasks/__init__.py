"""How many held-out tasks of nano3's own generators a model solves, and how long it thinks."""
