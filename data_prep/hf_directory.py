"""A Hugging Face model directory: `config.json`, tokenizer files and safetensors, without torch.

The tensor headers are read by hand (8 bytes of length, then JSON; the format is specified in the
safetensors README), so that a tool can plan a merge or a load of 70B without touching the data.
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from configs.loader import ConfigError
from data_prep.lineage import whole_file

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "original/tokenizer.model",
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `start` and `stop` are byte offsets in `file`; `dtype` as safetensors writes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return self.stop - self.start


@dataclass(frozen=True)
class ModelDirectory:
    """The parsed `config.json` and the tensors of a model directory, by name."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]

    @classmethod
    def open(cls, path: str | Path) -> "ModelDirectory":
        """Reads the configuration and the headers of all tensor files.

        Raises:
            ConfigError: the folder, `config.json` or a tensor file is missing or damaged.
        """
        path = Path(path)
        config = _read_json(path / "config.json", "give a Hugging Face model directory")
        tensors: dict[str, TensorEntry] = {}
        for file in _tensor_files(path):
            tensors.update({entry.name: entry for entry in read_header(file)})
        return cls(path, config, tensors)

    def read(self, name: str) -> np.ndarray:
        """Returns the bytes of one tensor as a read-only memory map, uint8, (num_bytes,)."""
        entry = self.tensors[name]
        if entry.num_bytes == 0:  # which a memory map cannot be
            return np.empty(0, dtype=np.uint8)
        return np.memmap(entry.file, dtype=np.uint8, mode="r", offset=entry.start, shape=(entry.num_bytes,))

    def tokenizer_files(self) -> list[Path]:
        """Returns the tokenizer's files that are present, relative to the directory."""
        return [Path(name) for name in TOKENIZER_FILES if (self.path / name).is_file()]


def read_header(file: Path) -> list[TensorEntry]:
    """Returns the entries of one safetensors file in the order of their data.

    Raises:
        ConfigError: the header is no safetensors header, or the file is shorter than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise ConfigError(file, [f"is no safetensors file, or cut short at {size} bytes; copy it again"])
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise ConfigError(file, [f"has a damaged safetensors header: {error}; copy it again"]) from None
    if not isinstance(header, dict):
        raise ConfigError(file, ["has a damaged safetensors header: it is no JSON object; copy it again"])
    header.pop("__metadata__", None)
    base = 8 + length
    try:
        entries = [
            TensorEntry(name, info["dtype"], tuple(info["shape"]), file, *(base + o for o in info["data_offsets"]))
            for name, info in header.items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(file, [f"has a damaged safetensors header: {error!r}; copy it again"]) from None
    for entry in entries:
        if not base <= entry.start <= entry.stop:
            text = f"{entry.name} lies at bytes {entry.start} to {entry.stop} of {size}; copy it again"
            raise ConfigError(file, [text])
        expected = math.prod(entry.shape) * ITEM_BYTES.get(entry.dtype, 0)
        if entry.dtype in ITEM_BYTES and entry.num_bytes != expected:
            text = f"{entry.name} has {entry.num_bytes} bytes, {expected} by its shape and dtype; copy it again"
            raise ConfigError(file, [text])
    end = max((entry.stop for entry in entries), default=base)
    if end != size:
        raise ConfigError(file, [f"has {size} bytes where its header says {end}; copy it again"])
    return sorted(entries, key=lambda entry: entry.start)


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be written: its name, everything before the data, and where each tensor goes."""

    name: str
    header: bytes
    tensors: dict[str, TensorEntry]  # `file` is the name alone; offsets are from the start of the file

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return max((entry.stop for entry in self.tensors.values()), default=len(self.header))


def plan_shards(planned: Iterable[tuple[str, str, tuple[int, ...]]], max_shard_bytes: int = 5 * 10**9) -> list[Shard]:
    """Spreads tensors over files, in order; one file is called `model.safetensors`, as transformers does.

    Args:
        planned: (name, safetensors dtype, shape) of every tensor, in the order of writing.
        max_shard_bytes: a shard closes before its data would exceed this (one tensor always fits).
    """
    groups: list[list[tuple[str, str, tuple[int, ...], int]]] = [[]]
    filled = 0
    for name, dtype, shape in planned:
        num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        if filled and filled + num_bytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, dtype, shape, num_bytes))
        filled += num_bytes
    count = len(groups)
    names = [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    return [
        _shard(name, group) for name, group in zip(names if count > 1 else ["model.safetensors"], groups, strict=True)
    ]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Writes the index of a model of several shards; one of a single file needs none."""
    if len(shards) == 1:
        return
    total = sum(entry.num_bytes for shard in shards for entry in shard.tensors.values())
    weight_map = {name: shard.name for shard in shards for name in shard.tensors}
    with whole_file(folder / INDEX) as partial:
        partial.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def _shard(name: str, group: list[tuple[str, str, tuple[int, ...], int]]) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, dtype, shape, num_bytes in group:
        header[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data of every tensor starts at a multiple of 8
    base = 8 + len(text)
    entries = {
        tensor: TensorEntry(tensor, dtype, shape, Path(name), *(base + o for o in header[tensor]["data_offsets"]))
        for tensor, dtype, shape, _ in group
    }
    return Shard(name, struct.pack("<Q", len(text)) + text, entries)


class TensorWriter:
    """Writes safetensors shards tensor by tensor, so that memory holds one tensor at a time.

    Files carry their final names only when all of them are complete (`finish`). As a context manager
    it also closes the open file when the writing fails.
    """

    def __init__(
        self, folder: Path, planned: Iterable[tuple[str, str, tuple[int, ...]]], max_shard_bytes: int = 5 * 10**9
    ) -> None:
        """Plans the shards.

        Args:
            folder: created when missing.
            planned: (name, safetensors dtype, shape) of every tensor, in the order of writing.
            max_shard_bytes: a shard closes before it would exceed this (one tensor always fits).
        """
        self._folder = folder
        self._shards = plan_shards(planned, max_shard_bytes)
        self._order = [(index, name) for index, shard in enumerate(self._shards) for name in shard.tensors]
        self._written = 0
        self._stream: BinaryIO | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, name: str, data: bytes | np.ndarray) -> None:
        """Appends the bytes of the next planned tensor."""
        shard, expected = self._order[self._written]
        num_bytes = self._shards[shard].tensors[expected].num_bytes
        assert name == expected, f"tensor {name} written where {expected} was planned"
        assert len(data) == num_bytes, f"tensor {name} has {len(data)} bytes, planned {num_bytes}"
        if self._stream is None or self._order[self._written - 1][0] != shard:
            self._open(shard)
        assert self._stream is not None
        self._stream.write(data if isinstance(data, bytes) else data.data)
        self._written += 1

    def finish(self) -> None:
        """Gives all files their final names; the index of a sharded model is written last."""
        assert self._written == len(self._order), f"{self._written} of {len(self._order)} tensors written"
        if self._stream is not None:
            self._stream.close()
        for shard in self._shards:
            (self._folder / f"{shard.name}.tmp").replace(self._folder / shard.name)
        write_index(self._folder, self._shards)

    def _open(self, index: int) -> None:
        if self._stream is not None:
            self._stream.close()
        shard = self._shards[index]
        self._stream = (self._folder / f"{shard.name}.tmp").open("wb")
        self._stream.write(shard.header)


def _tensor_files(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        weight_map = _read_json(path / INDEX, "copy it again").get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ConfigError(path / INDEX, ["has a weight_map that names no files; copy it again"])
        names = sorted(set(weight_map.values()))
        if escaping := [name for name in names if Path(name).name != name]:
            raise ConfigError(path / INDEX, [f"names {escaping[0]!r}; tensor files lie in the folder itself"])
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (path / name).is_file()]
    if missing and (pickles := [file.name for kind in PICKLES for file in sorted(path.glob(kind))]):
        raise ConfigError(
            path,
            [
                f"holds {pickles[0]}, a pickle, which can run code of whoever wrote it; safetensors are expected; take "
                "the model's revision with safetensors, or convert it where you trust it with transformers' "
                "save_pretrained"
            ],
        )
    if missing or not names:
        raise ConfigError(path, [f"{(missing or ['model.safetensors'])[0]} is missing; download the model again"])
    return [path / name for name in names]


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(path, [f"does not exist; {remedy}"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, [f"is no JSON: {error}; {remedy}"]) from None
    if not isinstance(value, dict):
        raise ConfigError(path, [f"holds no JSON object; {remedy}"])
    return value
