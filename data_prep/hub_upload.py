"""Pushes a model directory to the Hugging Face Hub, through its own client."""

import json
from pathlib import Path
from typing import Any

from configs.loader import UserError
from data_prep.lineage import MANIFEST, sha256_file


class HubError(UserError):
    """The Hub could not take a directory; the message says what it answered."""


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads a directory as one commit; files that the repository holds already are not sent again.

    The token is the client's own: HF_TOKEN, or that of `hf auth login`. HF_ENDPOINT names another server.

    Args:
        folder: with a manifest, whose hashes its files must have.
        repo: OWNER/NAME; created when it does not exist.
        private: whether it is, when it is created.

    Returns:
        The address of the commit.

    Raises:
        HubError: a file is not as the manifest says, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    changed = [n for n, one in files.items() if not _is_whole(folder / n, one["sha256"])]
    if changed:
        raise HubError(
            f"{folder / changed[0]} is not as {MANIFEST} says; an unchanged export is expected; export again"
        )
    transport: Any = HfHubHTTPError.__bases__[0]  # of the client's own httpx; also what fails before an answer comes
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=[*files, MANIFEST], commit_message="Upload by kotune"
            )
        )
    except (transport, OSError, ValueError) as error:  # ValueError: the Hub does not take the card's header
        told = " ".join(str(error).split())[:300]
        raise HubError(
            f"{repo}: {told}; a token that may write there, and a network, are needed; the export stays in {folder}: "
            "push it again with hub.only=true"
        ) from None


def _is_whole(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_file(file) == sha256
