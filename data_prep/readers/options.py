"""Reads documents from anything but a dump: JSON lines, Parquet, tables, plain text, Hugging Face datasets."""

import argparse
import codecs
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from data_prep.document import CorpusError
from data_prep.readers.fields import Fields
from data_prep.readers.files import FileSource
from data_prep.readers.hub import HubSource
from data_prep.readers.rows import saved_splits
from data_prep.readers.text import list_files
from data_prep.source import Source

FORMATS = ("jsonl", "parquet", "csv", "tsv", "text", "datasets")
_SUFFIXES = {
    "jsonl": tuple(f".{name}{end}" for name in ("jsonl", "ndjson", "json") for end in ("", ".gz", ".zst", ".bz2")),
    "parquet": (".parquet",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "text": (".txt",),
}
_OURS = "documents-*.jsonl.zst"
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "manifest.json", "run.json", "report.json", "state.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--documents` and what belongs to it."""
    group = parser.add_argument_group("documents from other sources than a dump")
    group.add_argument(
        "--documents",
        metavar="PATH",
        help="JSON lines (.gz, .zst, .bz2), Parquet, CSV, TSV or .txt file, a folder of one kind of them, a dataset "
        "saved by `datasets`, or a dataset of the Hugging Face Hub as OWNER/NAME",
    )
    group.add_argument("--format", choices=FORMATS, help="default: what names and content say")
    group.add_argument("--text-field", default="text", help="field with the text (default: text)")
    group.add_argument("--id-field", help="field with the id (default: id if there is one, else the place in the file)")
    group.add_argument("--title-field", help="field with the title (default: title if there is one)")
    group.add_argument("--source-name", help="name of the corpus, `source` of its documents (default: the file's name)")
    group.add_argument("--split", help="split of a Hugging Face dataset, such as train")
    group.add_argument("--subset", help="configuration of a Hugging Face dataset, such as 20231101.ko")
    group.add_argument("--encoding", default="utf-8", help="of .txt, .csv and .tsv files, such as cp949")


def from_arguments(args: argparse.Namespace) -> Source | None:
    """Returns the source that `--documents` names, None without it. `args.lang` is every document's language if set.

    Raises:
        CorpusError: there is no such source, it cannot be read, or its first record lacks a field.
    """
    if args.documents is None:
        return None
    try:
        codecs.lookup(args.encoding)
    except LookupError:
        raise CorpusError(
            f"--encoding is {args.encoding!r}; the name of a text encoding is expected; give utf-8, cp949 or euc-kr"
        ) from None
    source = _source(args)
    probe = replace(source, files=source.files[:1]) if isinstance(source, FileSource) else source
    first = probe.parts(1 << 40)[:1]
    next(iter(probe.read(first[0])) if first else iter(()), None)  # a wrong --text-field must not wait for the workers
    return source


def _source(args: argparse.Namespace) -> Source:
    path = Path(args.documents)
    form = args.format or ("datasets" if args.split or args.subset else None)
    if not path.exists() and form in (None, "datasets") and _HUB_NAME.fullmatch(args.documents):
        return HubSource(
            args.documents, args.subset, args.split, _fields(args, args.documents.split("/")[1]), args.lang
        )
    if not path.exists():
        raise CorpusError(f"--documents {path} does not exist; give an existing file or folder, or OWNER/NAME")
    name = path.resolve().name.split(".")[0] or "documents"
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return FileSource("saved", path, (_saved(path, args.split),), _fields(args, name), args.encoding, args.lang)
    if form == "datasets":
        if path.is_file():
            raise CorpusError(f"{path} is a file; --format datasets takes a folder; leave --format and --split out")
        return HubSource(str(path), args.subset, args.split, _fields(args, name), args.lang)
    if path.is_dir() and form in (None, "jsonl") and (ours := tuple(sorted(path.glob(_OURS)))):
        return FileSource("jsonl", path, ours, _fields(args, None), args.encoding, args.lang)
    form = form or (_folder_format(path) if path.is_dir() else _file_format(path))
    files = (path,) if path.is_file() or form == "text" else tuple(_data_files(path, form))
    if not files or (form == "text" and path.is_dir() and not list_files(path, _SUFFIXES["text"])):
        raise CorpusError(f"{path} holds no {form} files ({', '.join(_SUFFIXES[form])}); give another folder or format")
    return FileSource(form, path, files, _fields(args, name), args.encoding, args.lang)


def _fields(args: argparse.Namespace, name: str | None) -> Fields:
    return Fields(args.text_field, args.id_field, args.title_field, args.source_name or name, args.lang)


def _saved(path: Path, split: str | None) -> Path:
    """Returns the folder of one split of a saved dataset."""
    splits = saved_splits(path)
    if not splits and split is None:
        return path
    if split in splits or (split is None and len(splits) == 1):
        return path / (split or splits[0])
    found = f"the splits {', '.join(splits)}" if splits else "no splits"
    raise CorpusError(f"{path} has {found}, --split is {split}; one of its splits is expected; give it as --split")


def _file_format(path: Path) -> str:
    for form, suffixes in _SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return form
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    raise CorpusError(f"{path}: neither its name nor its beginning {head[:12]!r} tells the format; give it as --format")


def _folder_format(path: Path) -> str:
    counts = Counter({form: len(_data_files(path, form)) for form in _SUFFIXES})
    found = [form for form, number in counts.items() if number]
    if len(found) == 1:
        return found[0]
    held = ", ".join(f"{counts[form]} {form}" for form in found) or "none that can be read"
    raise CorpusError(
        f"{path} holds files of these formats: {held}; one of {', '.join(FORMATS[:-1])} is expected; "
        "name it with --format, or give another folder"
    )


def _data_files(path: Path, form: str) -> list[Path]:
    return [file for file in list_files(path, _SUFFIXES[form]) if file.name not in _NO_DATA]
