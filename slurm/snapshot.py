"""A copy of the code that jobs run from, so that nobody's next edit changes a job that waits in the queue."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from configs.loader import UserError
from data_prep.lineage import COMMIT, ROOT, commit, write_json


def take(folder: Path, root: Path = ROOT) -> dict[str, Any]:
    """Copies the files that git tracks, and new ones in the folders that hold such, to `folder`.

    What the checkout has beside them (out, checkpoints, dumps, a virtual environment) is linked, so that relative
    paths mean in the copy what they mean in the checkout.

    Returns:
        The commit, and the hash of what differs from it.

    Raises:
        UserError: the checkout is no git repository.
    """
    tracked = _git(root, "ls-files", "-z").rstrip("\0").split("\0")
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    new = [name for name in others if name.split("/")[0] in folders and (root / name).is_file()]
    for name in sorted({*tracked, *new}):
        if (root / name).is_file():  # neither removed nor a submodule
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    for entry in root.iterdir():
        if entry.name != ".git" and not (folder / entry.name).exists():
            os.symlink(entry, folder / entry.name)
    changes = _git(root, "diff", "HEAD", "--binary") + "".join(
        f"{name} {hashlib.sha256((root / name).read_bytes()).hexdigest()}\n" for name in new
    )
    version = commit()
    (folder / COMMIT).write_text(version + "\n", encoding="utf-8")
    facts = {"commit": version, "changes_sha256": hashlib.sha256(changes.encode()).hexdigest() if changes else None}
    write_json(folder.parent / "snapshot.json", facts)
    return facts


def _git(root: Path, *words: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip()
        raise UserError(f"{root} cannot be copied: {said}; a git checkout is expected; submit from one")
    return result.stdout.decode(errors="surrogateescape")
