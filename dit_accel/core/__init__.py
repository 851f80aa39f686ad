"""What every technique stands on; several packages use each module.

In: a diffusers pipeline and its calls. Out: run, step, branch and role (`session.py`), patches that
can be undone (`patching.py`), numbers (`measure.py`, `flops.py`) and the `Report`. Which step a
forward belongs to is decided in `session.py`; nothing here decides what a step computes.
"""
