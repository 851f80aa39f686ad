"""Inside one attention: staged processing, low rank, block-sparse, merging, trimmed text.

In: queries, keys and values `(B, N, H, D)`. Out: attention's output, and its FLOPs. `pcas.py`
decides whether pruning is worthwhile, and `block_sparse.py` which blocks stay. `processor.py` has
the stages that techniques replace. No module here knows steps or sites.
"""
