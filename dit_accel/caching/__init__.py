"""What happens during a run: values are computed, cached, extrapolated, pruned or blended.

In: forwards of the transformers, and a policy. Out: their outputs, and measurements. Where the
decision about a step is made: with windows in `windows.py`; with a plan in `policy.py`, and in
`guard.py`, which may override the plan; for pruned attentions in `unicp.py` and `blend.py`.
`controller.py` gives each run its policy.
"""
