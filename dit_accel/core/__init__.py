"""Modules that all techniques need; several packages use each of them.

In: a diffusers pipeline and its calls. Out: run, step, branch and role (`session.py`), patches that
can be undone (`patching.py`), numbers (`measure.py`, `flops.py`) and the `Report`. `session.py`
decides which step a forward belongs to. Nothing here decides whether a step is computed.
"""
