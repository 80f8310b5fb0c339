"""The producer room's commands."""
