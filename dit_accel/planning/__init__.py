"""Before a run, with numbers only: which plan it gets, and what PSNR to expect.

In: a profile, the run's steps, guidance and text, and a target. Out: a `PlanChoice`. The plan is
chosen in `selection.choose` and nowhere else, for API, command line and evaluation. `search.py`
finds plans with the error model; `prediction.py` estimates their quality.
"""
