"""The directory of a merged model: complete or absent, and ready to chat as it lies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_prep import lineage
from data_prep.hf_directory import ModelDirectory
from recipes.merging.compatibility import MergeError, refuse_incompatible
from recipes.merging.tensors import merge_tensors, total_norms

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
SPARE_BYTES = 100 * 10**6  # tokenizer files, configuration and manifest


class ChatVectorMerge:
    """A planned merge: the three models, the scales, and the folder that is to hold the result."""

    def __init__(self, output_dir: Path, paths: dict[str, Path], scale: float, embeddings_scale: float | None) -> None:
        """Reads headers and configurations; no tensor data.

        Args:
            output_dir: must not be one of the models' directories.
            paths: the model directories `target`, `plus` and `minus`.
            scale: for all tensors but those `embeddings_scale` is given for.
            embeddings_scale: for the input embeddings and the output head, unless None.
        """
        self.output_dir = output_dir
        self.paths = paths
        self.models = tuple(ModelDirectory.open(paths[role]) for role in ("target", "plus", "minus"))
        self.scales = {"scale": scale, "embeddings_scale": embeddings_scale}
