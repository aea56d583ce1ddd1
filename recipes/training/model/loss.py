"""Cross-entropy that a sum over ranks and micro-batches turns into the mean over the global batch."""

import torch
import torch.nn.functional as F

IGNORE = -100
"""Target of a position that is not trained: document starts, prompts, padding."""


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy in nats, summed over the valid targets in fp32; 0 when there are none.

    Args:
        logits: (batch, seq, vocab), any float dtype.
        targets: (batch, seq), int64; `IGNORE` is not counted.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
