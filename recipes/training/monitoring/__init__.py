"""What looks at a run without changing it: metrics, rates, held-out text, profiles."""
