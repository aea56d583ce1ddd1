"""What holds for all tests."""

import pytest
from hypothesis import settings

from tests.support import ROOT

# A shared machine may stall any example for a second; pytest-timeout ends what hangs.
settings.register_profile("kotune", deadline=None)
settings.load_profile("kotune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file in one of pytest-xdist's processes, for their fixtures, and all that need the Slurm."""
    for item in items:
        needs_slurm = item.path.parent == ROOT / "tests" / "slurm"
        item.add_marker(pytest.mark.xdist_group("slurm" if needs_slurm else item.nodeid.split("::")[0]))
