"""Corpus readers, one per format: V4 chunk files, JSON Lines, plain files."""
