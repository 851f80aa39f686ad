"""Data that comes with the package: `importlib.resources.files("dit_accel.assets")` is its folder."""
