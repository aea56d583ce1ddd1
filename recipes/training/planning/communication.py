"""What a GPU sends to others during a step, counted from the shapes; all collectives as rings.

In a ring of n GPUs each one sends (n - 1) / n of what is gathered or scattered, and twice that to sum it everywhere.
"""

from recipes.training.model.decoder import Architecture
from recipes.training.planning.footprint import parameter_counts

REDUCED_BYTES = 4
"""Of a gradient, which is summed in fp32 whatever it is stored in."""


def bytes_per_token(model: Architecture, compute: int, ranks: int, activations: str) -> float:
    """Returns what tensor parallelism makes a GPU send for one token of its group's sequences.

    The hidden state is summed twice a layer in the forward pass, once behind the embedding, and its gradient at the
    inputs of attention, MLP and output layer. Layers that are computed again sum once more, behind attention: nothing
    of what comes behind the last matrix product is computed again.

    Args:
        model: the decoder's shape.
        compute: bytes of a number of the hidden state.
        ranks: that share each matrix.
        activations: as in the configuration.
    """
    sums = 4 * model.num_layers + 2 + (model.num_layers if activations != "none" else 0)
    return 2 * (ranks - 1) / ranks * sums * model.embed_dim * compute


def bytes_per_step(
    model: Architecture,
    compute: int,
    *,
    ranks: int,
    shards: int,
    replicas: int,
    gathers: int,
    reductions: int,
) -> float:
    """Returns what a GPU sends of weights and gradients in a step.

    Args:
        model: the decoder's shape.
        compute: bytes of a gathered weight.
        ranks: that share each matrix.
        shards: over which FSDP2 spreads what such a rank holds.
        replicas: of the whole model.
        gathers: of all weights, in a step.
        reductions: of all gradients, in a step.
    """
    held = sum(parameter_counts(model).values()) / ranks
    over_shards = (shards - 1) / shards * held * (gathers * compute + reductions * REDUCED_BYTES)
    return over_shards + 2 * (replicas - 1) / replicas * held / shards * reductions * REDUCED_BYTES
