"""A run folder that cannot be written to ends the run with a sentence."""

import pytest
import torch

from configs.loader import ConfigError
from recipes.training.distributed import World, log_to_file


def test_a_run_folder_that_cannot_be_written_to_is_a_problem_of_output_dir(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    world = World(0, 1, torch.device("cpu"), None)
    with (
        pytest.raises(
            ConfigError, match=r"run/logs cannot be written to: Not a directory; a writable folder is expected"
        ),
        log_to_file(world, tmp_path / "run/logs"),
    ):
        pass
