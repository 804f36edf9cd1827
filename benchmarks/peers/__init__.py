"""The peers: one small function per operation."""
