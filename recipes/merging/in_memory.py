"""A merged model that is never written: its tensors are computed when they are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recipes.merging.blocks import DTYPES, open_handles
from recipes.merging.plan import MergePlan
from recipes.merging.tensors import input_files, merged_bytes


@contextmanager
def merged_tensors(plan: MergePlan) -> Iterator[Callable[[str], Tensor]]:
    """Yields a function from a stored name to the merged tensor, bit for bit the one a merge would write."""
    with open_handles(input_files(plan)) as handles:

        def read(name: str) -> Tensor:
            entry = plan.tensors[name].target
            return torch.from_numpy(merged_bytes(plan, handles, name)).view(DTYPES[entry.dtype]).reshape(entry.shape)

        yield read
