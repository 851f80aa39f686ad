"""One run from the command line: from the options to files and a summary.

In: the options of a command. Out: clips, a JSON sidecar, a few lines of text. `request.py` checks
without a model, `settings.py` with its configuration; `target.py` asks `planning.selection` for the
plan, and `run.py` runs what was printed.
"""
