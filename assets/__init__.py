"""Data that comes with the package; `importlib.resources.files("dit_accel.assets")` finds it."""
