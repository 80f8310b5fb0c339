"""Chaos: a real fleet, a seeded schedule of faults, and an oracle that knows what must come of it."""
