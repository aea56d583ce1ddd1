"""Training of one loop: data, model, optimizer, checkpoints and metrics."""
