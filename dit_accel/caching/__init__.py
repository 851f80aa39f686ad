"""During a run: each site's value is computed, cached, extrapolated, pruned or blended.

In: forwards of the transformers, and a policy. Out: their outputs, and what was measured. Windows
decide in `windows.py`; plans in `policy.py`, overridden by `guard.py`; `unicp.py` and `blend.py`
decide for attentions. `controller.py` gives each run its policy.
"""
