"""One small function for each peer and operation."""
