"""A run's state on disk: complete or absent."""
