"""One token of each of many sequences through the whole model at once."""
