"""Scenes: isolated subjects, references between shots, reposition, subjects' own prompts.

In: a layout and a `SceneConfig`. Out: patched attentions that carry the scene out, and its report.
`isolation.py` decides which parts are active at a step and layer, `masks.py` who sees whom,
`rows.py` what a row reads, and `support.py` which models are accepted.
"""
