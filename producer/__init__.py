"""The producer: reads a corpus, cuts batches, submits them to the fleet and follows them; searches."""
