"""From the rows of any file to documents: which field is the text, the id, the title."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.document import CorpusError, Document
from data_prep.filters.measures import language
from data_prep.source import Part, Rejection

CARRIED = ("url", "revision", "timestamp")

Record = tuple[int, int, Mapping[str, Any]]
"""Number or offset of a record in its file, file offset read so far, and the row."""


@dataclass(frozen=True)
class Fields:
    """Where a row keeps what. `id` and `title` None mean: the field of that name, if there is one."""

    text: str
    id: str | None
    title: str | None
    source: str | None
    """Name of the corpus; None keeps what our own documents say."""
    lang: str | None
    """ISO 639-1 code of every document; None: what the row says if it is ours, else by its letters."""

    def columns(self, present: list[str]) -> list[str]:
        """Returns those of the columns that are read."""
        wanted = {self.text, self.id or "id", self.title or "title", "source", "lang", *CARRIED}
        return [name for name in present if name in wanted]

    def document(self, row: Mapping[str, Any], place: Callable[[], str], key: str) -> Document | Rejection:
        """Returns the row's document; a row whose text is null is rejected as `no_text`.

        Args:
            row: field -> value.
            place: returns file and line, for messages.
            key: what stands for an id if the row has none.

        Raises:
            CorpusError: the text or a named field is missing, or is no text.
        """
        text = self._value(row, self.text, "--text-field", place)
        source = self.source or _text(row.get("source")) or "documents"
        own_id = _text(self._value(row, self.id, "--id-field", place) if self.id else row.get("id")) or key
        title = _text(self._value(row, self.title, "--title-field", place) if self.title else row.get("title"))
        id_ = own_id if own_id.startswith(f"{source}-") else f"{source}-{own_id}"
        if text is None:
            return Rejection(id_, title, "no_text")
        if not isinstance(text, str):
            raise CorpusError(
                f"{place()}: field {self.text!r} holds {type(text).__name__} {str(text)[:40]!r}; text is expected; "
                "name another one with --text-field"
            )
        lang = self.lang or (_text(row.get("lang")) if self.source is None else "") or language(text)
        rest = {field: _text(row.get(field)) for field in CARRIED}
        return Document(id=id_, text=text, source=source, lang=lang, title=title, **rest)

    def _value(self, row: Mapping[str, Any], field: str, option: str, place: Callable[[], str]) -> Any:
        if field in row:
            return row[field]
        raise CorpusError(
            f"{place()} has no field {field!r}; its fields are {', '.join(map(str, row)) or 'none'}; "
            f"name one of them with {option}"
        )


class Records:
    """The documents of one part; see `PartReader`."""

    def __init__(
        self,
        part: Part,
        records: Iterator[Record],
        fields: Fields,
        place: Callable[[int], str],
        key: Callable[[int], str],
    ) -> None:
        self.position = part.start
        self._end, self._records, self._fields, self._place, self._key = part.end, records, fields, place, key

    def __iter__(self) -> Iterator[Document | Rejection]:
        """See `PartReader`."""
        for number, position, row in self._records:
            self.position = position
            yield self._fields.document(row, lambda number=number: self._place(number), self._key(number))  # type: ignore[misc]
        self.position = self._end

    def facts(self) -> dict[str, Any]:
        """See `PartReader`; nothing more is known."""
        return {}


def _text(value: Any) -> str:
    """Returns a text, a number or a date as text; nothing for what is no single value."""
    if value is None or isinstance(value, dict | list | bool | bytes):
        return ""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
