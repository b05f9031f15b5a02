"""`nano3 bench roofline`: what a GPU can do at the very best, reckoned from bytes and floating-point operations."""
