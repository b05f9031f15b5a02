"""Removal of duplicates: exact and near, within the input and against an existing corpus."""
