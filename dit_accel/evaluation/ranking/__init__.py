"""Draft ranking: does a method's clip rank seeds as the uncached clip does?

Who tries several seeds and keeps one may try them with an accelerated model, and make the chosen
one again in full. `choices` are ways to choose a seed; `scores` applies them to stored clips,
which gives each its `seed_scores`; `agreement` compares two rankings of one prompt's seeds;
`table` is the mean over prompts.
Source: rank preservation as in CachedSearch, arXiv 2607.23159; the choices are ours.
"""
