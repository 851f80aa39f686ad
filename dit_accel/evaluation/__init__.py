"""Batch evaluation: many prompts, many methods, one folder that survives anything.

jobs (what is to be made) -> runner (makes one and scores it) -> store (one file a job)
-> statistics (intervals, paired differences) -> summary (one row a method).
"""
