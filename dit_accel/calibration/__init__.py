"""Measure a pipeline: recorded uncached runs and probes become a profile.

In: a pipeline and clips to make. Out: a profile with sampler coefficients, error model and plans.
`calibrate.py` runs record, probe (`measurement.py`), search and refine in this order and decides
which candidate plans are carried out; `checkpoint.py` lets a calibration be resumed.
"""
