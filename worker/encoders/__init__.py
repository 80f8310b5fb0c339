"""Loaded models behind one interface: `base` is the interface, `factory` loads, `encode` runs."""
