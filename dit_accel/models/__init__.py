"""The supported models, and how a model folder becomes a pipeline.

In: a folder, a hub id or the name of the miniature. Out: a pipeline, and the row of its family.
`families.py` decides whether a transformer is supported, and at which sites. `loading.py` decides a
folder's class, dtype and device.
"""
