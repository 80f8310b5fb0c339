"""Rerankers: models that order candidates for a query."""
