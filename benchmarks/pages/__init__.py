"""Pages that results are told in, for the protocols that measure much."""
