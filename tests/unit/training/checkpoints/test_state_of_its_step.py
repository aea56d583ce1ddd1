"""What a checkpoint says is of its own step, although it is written while the run goes on."""

import torch

from recipes.training.checkpoints.checkpoint import CheckpointStore
from recipes.training.checkpoints.folder import Retention, read_state
from recipes.training.distributed import process_group


def test_counts_that_go_on_while_a_checkpoint_is_written_stay_out_of_it(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"step": 1, "ledger": {"tokens": 512}}
    with process_group("cpu") as world, CheckpointStore(tmp_path, {}, world, Retention(1)) as store:
        written = store.save(model, optimizer, state)
        state["ledger"]["tokens"] += 512
    assert read_state(written)["ledger"] == {"tokens": 512}
