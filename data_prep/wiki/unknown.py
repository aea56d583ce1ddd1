"""Counts of templates the table does not know, with examples: the list a user grows the table from."""

from collections.abc import Mapping
from typing import Any

MAX_EXAMPLES = 3  # per name
MAX_CALL_CHARS = 120
MAX_NAMES = 100_000  # about 60 MB; a Wikipedia has fewer, a page of noise has more


class UnknownTemplates:
    """How often each unknown template occurred, and where first.

    Beyond `MAX_NAMES` names the rarer half is forgotten, so that memory stays bounded; counts are exact below that.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, name: str, call: str, title: str) -> None:
        """Counts one call of `name` on the page `title`; the first `MAX_EXAMPLES` calls are kept, cut."""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        if count < MAX_EXAMPLES:
            example = {"title": title, "call": call[:MAX_CALL_CHARS]}
            self._examples.setdefault(name, []).append(example)
        if not count and len(self._counts) > MAX_NAMES:
            self._forget_rare()

    def merge(self, other: "UnknownTemplates") -> None:
        """Adds the counts of `other`; examples of this one come first."""
        for name, count in other._counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
            examples = self._examples.setdefault(name, [])
            examples += other._examples[name][: MAX_EXAMPLES - len(examples)]
        if len(self._counts) > MAX_NAMES:
            self._forget_rare()

    def as_json(self, top: int | None = None) -> dict[str, dict[str, Any]]:
        """Returns `{name: {"count", "examples": [{"title", "call"}, ...]}}`, most frequent first, then by name."""
        return {
            name: {"count": self._counts[name], "examples": [dict(example) for example in self._examples[name]]}
            for name in self._by_count()[:top]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, Any]]) -> "UnknownTemplates":
        """Returns the counts that `as_json` wrote."""
        unknown = cls()
        for name, facts in value.items():
            unknown._counts[name] = int(facts["count"])
            unknown._examples[name] = [
                {"title": str(example["title"]), "call": str(example["call"])[:MAX_CALL_CHARS]}
                for example in facts["examples"][:MAX_EXAMPLES]
            ]
        return unknown

    def _by_count(self) -> list[str]:
        return sorted(self._counts, key=lambda name: (-self._counts[name], name))

    def _forget_rare(self) -> None:
        for name in self._by_count()[MAX_NAMES // 2 :]:
            del self._counts[name], self._examples[name]
