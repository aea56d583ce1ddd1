"""What a run trains on: sources, mixtures, their packed sequences, and the order they come in."""
