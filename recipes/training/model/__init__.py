"""The decoder: its shape, weights, attention, loss, memory modes, and how it is spread over the ranks."""
