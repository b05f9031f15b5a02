"""What clients' schemas allow a model to write: checked, and made into grammars."""
