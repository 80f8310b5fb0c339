"""The fleet's processes: resident encoders, their tasks, the aggregator, the launcher."""
