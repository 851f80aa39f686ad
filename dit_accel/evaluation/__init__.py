"""Compares methods: many prompts, many methods, in one folder that can be resumed.

jobs (what is run) -> runner (runs one and scores it) -> store (one file a job) -> results (all of
them, by method and prompt) -> summary (one row a method) -> html (one page). `methods/` is the
table of methods. `dit-accel bench` runs `speed`, and `dit-accel score` runs `pairs`.
"""
