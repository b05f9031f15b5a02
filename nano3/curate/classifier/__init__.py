"""Classifiers of documents that users train from their own examples, with fastText."""
