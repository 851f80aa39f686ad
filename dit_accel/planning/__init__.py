"""Before a run, with numbers only: which plan it gets, and what PSNR to expect.

In: a profile, the run's steps, guidance and text, and a target. Out: a `PlanChoice`. The plan is
chosen in `selection.choose` and nowhere else, for API, command line and evaluation.
`error_model.py` predicts the final error of a plan; `search.py` finds plans that leave the least;
`prediction.py` estimates their quality.
"""
