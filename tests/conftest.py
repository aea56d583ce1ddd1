"""What holds for all tests."""

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# A shared machine may stall any example for a second; pytest-timeout ends what hangs.
settings.register_profile("kotune", deadline=None)
settings.load_profile("kotune")


class ByFile(LoadScopeScheduling):
    """Keeps the tests of a file in one process, for their fixtures, and all of tests/slurm: two clusters share ports.

    pytest-xdist's own `loadgroup` does nothing under pytest 9.2: it adds the group to a name that is no longer read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "tests/slurm" if file.startswith("tests/slurm/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Has pytest-xdist share out the tests that way."""
    return ByFile(config, log)
