"""What is known of models, and how a model folder becomes a pipeline.

In: a folder, a hub id or the name of the miniature. Out: a pipeline, and the row of its family.
Whether a transformer is supported, and at which sites, is decided in `families.py`; a folder's
class, dtype and device in `loading.py`.
"""
