"""Models that the tests of the merge share."""

from pathlib import Path

import pytest

from tests.unit.merging.small_models import copy_models, write_models


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def models(originals: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may spoil."""
    return copy_models(originals, tmp_path)
