"""Options that verbs share: names, help, shell completion, and the checks of what was typed."""
