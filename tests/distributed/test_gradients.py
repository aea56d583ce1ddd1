"""Any number of ranks and micro-batches gives the gradient of the whole batch, with uneven targets too."""

import sys

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from recipes.training.data.batches import Batch, collate
from recipes.training.data.packing import Sample
from recipes.training.distributed import leave, process_group
from recipes.training.model import weights
from recipes.training.model.decoder import Architecture, build_model, build_sharded_model, plain_name
from recipes.training.model.layout import LayoutSettings
from recipes.training.model.loss import IGNORE
from recipes.training.optimization.guard import Guard, GuardSettings
from recipes.training.optimization.schedule import Schedule
from recipes.training.step import Run, train_step
from tests.support import launch, whole

SEQ_LEN, ROWS = 24, 8
SHAPES = {
    name: Architecture(
        vocab_size=50, num_layers=2, num_heads=2, num_kv_heads=1, embed_dim=16, intermediate_dim=32, max_seq_len=32,
        tied_embeddings=name == "tied",
    )
    for name in ("untied", "tied")
}  # fmt: skip
LAYOUTS = {
    "plain": LayoutSettings(),
    "kept": LayoutSettings(reshard_after_forward=False, prefetch_layers=1),
    "replicas": LayoutSettings(replicas=2, prefetch_layers=2),
    "reduced": LayoutSettings(reduce_every_micro_batch=True),
}
SETTINGS = OmegaConf.create(
    {
        "clip_grad_norm": 1e9, "global_batch_tokens": SEQ_LEN * ROWS, "loss_chunk": 7, "z_loss": 0.0,
    }
)  # fmt: skip


def whole_batch() -> Batch:
    """Eight rows of two documents each; the rows have very different numbers of targets, one has none."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (ROWS, SEQ_LEN), generator=random)
    targets = torch.randint(0, 50, (ROWS, SEQ_LEN), generator=random)
    for row in range(ROWS):
        targets[row, row * 3 :] = IGNORE  # row 0 has no target at all
    return batch_of(tokens, targets, documents_of_rows())


def documents_of_rows() -> torch.Tensor:
    return (torch.arange(SEQ_LEN) >= 10).long().expand(ROWS, SEQ_LEN).contiguous()


def batch_of(tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> Batch:
    return collate([Sample(*(t.numpy() for t in row)) for row in zip(tokens, targets, documents, strict=True)])


class Rows:
    """One rank's share of the whole batch, in micro-batches."""

    def __init__(self, rank: int, size: int, micro_batch: int) -> None:
        self.mine, self.micro_batch = torch.arange(rank, ROWS, size), micro_batch

    def micro_batches(self, step: int, device: torch.device) -> list[Batch]:
        batch = whole_batch()
        documents = documents_of_rows()
        return [batch_of(batch.tokens[i], batch.targets[i], documents[i]) for i in self.mine.split(self.micro_batch)]


def main(out: str, shape: str, micro_batch: int, layout: str) -> None:
    """One step of plain gradient descent at learning rate 1: what the weights lose is the gradient."""
    with process_group("cpu") as world:
        model = build_sharded_model(SHAPES[shape], world, "fp32", "full", layout=LAYOUTS[layout])
        weights.initialise(model, 0)
        before = {n: whole(p) for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        rows = Rows(world.rank, world.size, micro_batch)
        run = Run(model, optimizer, rows, Schedule("cosine", steps=1, floor=1.0), [1.0], Guard(GuardSettings()))
        values = train_step(run, SETTINGS, world, False).metrics
        gradients = {plain_name(n): before[n] - whole(p) for n, p in model.named_parameters()}
        if world.rank == 0:
            torch.save({"loss": values["train/loss"], "norm": values["train/grad_norm"], "gradients": gradients}, out)


def reference(shape):
    """The mean loss over all targets of the batch and its gradients, without any of our loop."""
    model = build_model(SHAPES[shape])
    weights.initialise(model, 0)
    batch = whole_batch()
    documents = documents_of_rows()
    mask = (documents[:, :, None] == documents[:, None, :]).tril()
    logits = model(batch.tokens, mask=mask, input_pos=batch.positions)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "shape", "layout"),
    [
        (1, 8, "untied", "plain"),
        (1, 2, "tied", "plain"),
        (2, 4, "untied", "plain"),
        (2, 1, "untied", "kept"),
        (4, 1, "untied", "plain"),
        (4, 1, "tied", "replicas"),
        (2, 2, "tied", "reduced"),
    ],
)
def test_gradients_equal_the_whole_batchs(tmp_path, ranks, micro_batch, shape, layout):
    out = tmp_path / "out.pt"
    script = ["-m", "tests.distributed.test_gradients", str(out), shape, str(micro_batch), layout]
    if ranks == 1:
        launch(sys.executable, *script)
    else:
        launch("torchrun", "--standalone", "--nproc_per_node", str(ranks), *script)
    result = torch.load(out, weights_only=True)
    loss, gradients = reference(shape)
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(result["gradients"][name], gradient, atol=1e-6, rtol=1e-4)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert result["norm"] == pytest.approx(float(norm), rel=1e-4)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    leave(0)
