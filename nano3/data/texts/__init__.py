"""Documents: the readers of their files, the sources that name them, the embedded corpus, the held-out split."""
