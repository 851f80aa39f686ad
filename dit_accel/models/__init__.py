"""The supported models, and how a model folder becomes a pipeline.

In: a folder, a hub id or the name of the miniature. Out: a pipeline, and the row of its family.
`families.py` decides whether a transformer is supported, and at which sites; `folder.py`, whether a
folder is complete. `loading.py` finds the folder, and loads it.
"""
