"""Contract tests that anybody's implementation of a seam can run."""
