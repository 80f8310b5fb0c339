"""What every process of the fleet must agree on: models, plans, vector spaces, codecs, names, settings."""
