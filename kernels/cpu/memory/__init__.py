"""Memory by itself: what reading takes where nothing is computed."""
