"""What is in flight, in Redis: jobs, batches, steps, blobs, dead letters, and the reconciler."""
