"""`nano3 bench scaling`: how time and memory grow with length, batch and experts."""
