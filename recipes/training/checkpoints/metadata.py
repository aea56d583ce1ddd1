"""Reads a checkpoint's tensors and plain values without running code that its files could name.

torch.distributed.checkpoint keeps its table of contents, `.metadata`, as a pickle and reads it, as well as every value
that is no tensor, with the unrestricted unpickler (torch 2.11 to 2.13). A checkpoint may come from somebody else, so
both are read here, each with a list of what it may hold.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

FILE = ".metadata"
CLASSES = {
    metadata.__name__: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    filesystem.__name__: {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}
"""All that `.metadata` may name, by module, beside torch's dtypes."""


class UnsafeCheckpointError(pickle.UnpicklingError):
    """A checkpoint's table of contents names what no checkpoint of kotune holds, or contradicts itself."""


class CheckpointReader(FileSystemReader):
    """Reads a checkpoint's files; its table of contents by `read_metadata` of this module."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the checked table of contents."""
        found = read_metadata(Path(self.path))
        assert found.storage_meta is not None
        found.storage_meta.load_id = self.load_id
        return found


class PlainValuesPlanner(DefaultLoadPlanner):
    """Plans a load in which every value is a tensor or plain data, and every tensor asked for comes as a tensor."""

    def create_local_plan(self) -> LoadPlan:
        """Returns what this rank reads.

        Raises:
            UnsafeCheckpointError: a tensor asked for is stored as something else.
        """
        assert self.metadata is not None
        for name, value in self.state_dict.items():
            stored = self.metadata.state_dict_metadata.get(name)
            if isinstance(value, torch.Tensor) and stored and not isinstance(stored, TensorStorageMetadata):
                raise UnsafeCheckpointError(f"{name} is stored as an object; a tensor is expected")
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Takes a value that is no tensor: numbers, texts, lists and dicts of them."""
        plain = io.BytesIO()
        torch.save(torch.load(value, map_location="cpu", weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)  # which unpickles only what was just written here


def read_metadata(folder: Path) -> Metadata:
    """Returns the table of contents of a checkpoint.

    Args:
        folder: with `.metadata` as `dcp.save` writes it.

    Raises:
        UnsafeCheckpointError: the file names a class or function that is not in `CLASSES`, a data file outside the
            folder, or parts that do not make up their tensors; or it is damaged.
        FileNotFoundError: there is no such file.
    """
    path = folder / FILE
    with path.open("rb") as file:
        try:
            found = _Unpickler(file).load()
        except UnsafeCheckpointError as error:
            raise UnsafeCheckpointError(f"{path} {error}") from None
        except Exception as error:  # what a damaged pickle raises is anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnsafeCheckpointError(f"{path} cannot be read: {reason}; the file as it was written") from None
    try:
        problem = _problem(found)
    except (AttributeError, TypeError) as error:
        problem = f"is no table of contents: {error}"
    if problem:
        raise UnsafeCheckpointError(f"{path} {problem}")
    found.storage_meta = found.storage_meta or StorageMeta()
    return found


class _Unpickler(pickle.Unpickler):
    """Refuses every global that is not in `CLASSES`, before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if name not in CLASSES.get(module, ()):
            raise UnsafeCheckpointError(
                f"names {module}.{name}, which could run code; only tensors' names, shapes and places are expected"
            )
        return super().find_class(module, name)


def _problem(found: Metadata) -> str | None:
    """Returns what is wrong with a table of contents that could be read."""
    if not isinstance(found, Metadata):
        return f"holds a {type(found).__name__}; a table of contents is expected"
    for index, place in found.storage_data.items():
        name = place.relative_path
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            return f"places {index.fqn} in the file {name!r}; files of the checkpoint's own folder are expected"
        if place.offset < 0 or place.length < 0 or place.transform_descriptors:
            return f"places {index.fqn} at {place}; plain bytes within the file are expected"
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        size, held = math.prod(entry.size), sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if size != held:
            return f"has parts of {name} with {held} numbers in all; {size} are expected by its shape"
    return None
