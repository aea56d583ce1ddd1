"""What a run needs of its GPUs, and how long it takes, told before it starts."""
