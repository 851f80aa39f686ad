"""Measure a pipeline: recorded uncached runs and probes become a profile.

In: a pipeline and clips to make. Out: a profile with sampler coefficients, an error model and
candidate plans. `calibrate.py` runs record, probe, search and refine in this order and decides which
candidates are carried out; `checkpoint.py` lets a calibration be resumed.
"""
