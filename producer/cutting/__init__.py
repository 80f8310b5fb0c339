"""Cutting plain files into chunks: code at functions and classes, prose at paragraphs."""
