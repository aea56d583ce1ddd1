"""Where an artifact comes from: content hashes, the commit, and manifests that are written last."""

import ast
import functools
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
COMMIT = ".commit"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("configs", "data_prep", "recipes")
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")  # of a file, a folder or a module; one level, no spaces


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """Returns one hash for a file or a folder.

    A folder with a manifest is known by that manifest, which holds the hash of every file;
    another one by its files' names and contents.
    """
    if path.is_file():
        return sha256_file(path)
    if (path / MANIFEST).is_file():
        return sha256_file(path / MANIFEST)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the hash of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def commit() -> str:
    """Returns the checkout's commit, with `-dirty` when files differ from it; `unknown` outside git.

    A copy of the checkout, as slurm.submit makes one, has the commit in the file `.commit`.
    """
    if (ROOT / COMMIT).is_file():
        return (ROOT / COMMIT).read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


@contextmanager
def whole_file(path: Path, *, of_process: bool = False) -> Iterator[Path]:
    """Yields the path to write to; the file has its own name only when the block ends without an error.

    Args:
        path: the final name.
        of_process: the unfinished file bears the process's number, as another may be at the same one: a killed run's
            last worker lives a moment longer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp" if of_process else f"{path.name}.tmp")
    yield partial
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whose final name appears only when its content is on disk."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_manifest(folder: Path, inputs: dict[str, Path], **facts: Any) -> dict[str, Any]:
    """Writes `folder/manifest.json` with the hashes of `inputs` and of the folder's own files.

    Args:
        folder: a finished artifact; the manifest is its last file.
        inputs: name -> file or folder the artifact was made from.
        facts: further JSON values (counts, ledger, configuration).
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {
        "commit": commit(),
        "inputs": {name: {"path": str(path), "sha256": sha256_path(path)} for name, path in inputs.items()},
        **facts,
        "files": {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def source_files(entries: Iterable[str | Path], root: Path = ROOT) -> list[Path]:
    """Returns the project's files that launching `entries` can load: the version of the code a stage ran.

    Followed are imports (also those inside functions), constants that name a module of the project
    (`"recipes.training.loop"`), and files or folders of data that a module names and that lie beside it.

    Args:
        entries: module names (of a package its `__main__`), or paths of scripts.
        root: folder of the packages `PACKAGES`; modules outside them are not followed.
    """
    waiting: list[Path] = []
    for entry in entries:
        waiting += [entry.resolve()] if isinstance(entry, Path) else _module_files(f"{entry}.__main__", root)
    found: set[Path] = set()
    while waiting:
        if (file := waiting.pop()) not in found and file.is_file():
            found.add(file)
            waiting += _referenced_files(file, root, file.stat().st_mtime_ns)
    return sorted(found)


@functools.lru_cache(maxsize=1024)
def _referenced_files(file: Path, root: Path, _mtime_ns: int) -> tuple[Path, ...]:
    """Returns the files that one source file names; `_mtime_ns` makes an edited file a new question."""
    if file.suffix != ".py":
        return ()
    package = list(file.relative_to(root).parent.parts) if file.is_relative_to(root) else []
    files: list[Path] = []
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError:  # the command that runs it will say so
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            names = [node.value]
            files += _data_files(file.parent / node.value)
        else:
            continue
        files += [found for name in names for found in _module_files(name, root)]
    return tuple(files)


def _data_files(path: Path) -> list[Path]:
    """Returns the file, or the files of a folder that is no package."""
    if not path.is_dir() or (path / "__init__.py").exists():
        return [path]
    return [file for file in path.rglob("*") if file.suffix != ".pyc"]


def _module_files(name: str, root: Path) -> list[Path]:
    """Returns the files that importing `name` runs: every package on the way down, then the module.

    Trailing parts that are no module are taken for attributes.
    """
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    files = []
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        files += [place / "__init__.py" if place.is_dir() else place.with_suffix(".py")]
    return [file for file in files if file.is_file()]
