"""The command line: one thin file a verb, none of which imports torch before it has to."""
