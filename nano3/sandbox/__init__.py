"""Runs programs that a model wrote: no network, no files but their own, bounded in time, memory, processes and output.

Only Python's standard library is imported here, so that a worker starts at once.
"""
