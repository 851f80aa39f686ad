"""Chooses the plan of a run before it begins, and predicts its PSNR. It works on numbers only.

In: a profile, the run's steps, guidance and text, and a target. Out: a `PlanChoice`. API, command
line and evaluation all choose the plan in `selection.choose`, and nowhere else.
`error_model.py` predicts the final error of a plan; `search.py` finds plans with the least error;
`prediction.py` estimates their quality; `choice.py` is a chosen plan with its estimate.
"""
