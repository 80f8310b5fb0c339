"""The worker room's commands."""
