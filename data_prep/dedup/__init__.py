"""Documents that occur more than once: on one machine, or on a cluster."""
