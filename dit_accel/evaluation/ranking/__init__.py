"""Draft ranking: does a method's clip rank seeds as the uncached clip does?

A user who tries several seeds and chooses one can try them with an accelerated model, and make the
chosen one again in full. `choices` has ways to choose a seed. `scores` applies them to stored
clips, which gives `seed_scores`. `agreement` compares two rankings of one prompt's seeds. `table`
has the means over prompts.
Source: rank preservation as in CachedSearch, arXiv 2607.23159; the choices are ours.
"""
