"""What holds for all tests."""

from hypothesis import settings

# A shared machine may stall any example for a second; pytest-timeout ends what hangs.
settings.register_profile("kotune", deadline=None)
settings.load_profile("kotune")
