"""What is done, in Qdrant: a collection's layout from a plan, idempotent upsert, what is missing, query."""
