"""Measures a pipeline: recorded uncached runs and probes become a profile.

In: a pipeline and clips to make. Out: a profile with sampler coefficients, error model and plans.
`calibrate.py` records, probes (both in `measurement.py`), searches and refines, in this order. It
decides which candidate plans are carried out. With `checkpoint.py` a calibration can be resumed.
"""
