"""The `v5` command."""
