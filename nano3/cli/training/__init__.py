"""The verbs that train, what their dry run and summary show, and `nano3 runs`."""
