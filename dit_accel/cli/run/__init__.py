"""One run of `generate`: what was typed, resolved settings, the target, the run, its record."""
