"""Sections of settings, a file each."""
