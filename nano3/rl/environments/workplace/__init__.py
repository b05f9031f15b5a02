"""An office with five databases and 26 tools; what counts is what stands in the databases in the end."""
