"""How weights move: optimizers, schedules, and the guard before each step."""
