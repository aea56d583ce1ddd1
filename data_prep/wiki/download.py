"""A Wikipedia dump from Wikimedia or a mirror: resumed after a kill, and named only when its checksum is right."""

import argparse
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.disk import disk_full
from data_prep.document import CorpusError
from data_prep.run_folder import locked
from data_prep.wiki.fetch import FetchError, Patience, fetch, read_page

# Source: https://dumps.wikimedia.org/mirrors.html; the others have the files of the first some hours later.
MIRRORS = (
    "https://dumps.wikimedia.org",
    "https://mirror.accum.se/mirror/wikimedia.org/dumps",
    "https://dumps.wikimedia.your.org",
    "https://wikimedia.bringyour.com",
)
KINDS = ("pages-articles-multistream", "pages-articles", "pages-meta-current")
MULTISTREAM = KINDS[0]
LISTING_ATTEMPTS = 3  # a mirror that does not answer must not hold up the next one for minutes
NUM_DATES = 12  # shown when the one asked for is not there

_CHECKSUM = re.compile(r"([0-9a-f]{32,40}) [ *](\S+)")
_DATE = re.compile(r"""href=["'][^"']*?(\d{8})/?["']""")
_WIKI = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dump, by its name and its checksum."""

    name: str
    algorithm: str
    """`sha1` or `md5`."""
    checksum: str


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `download`."""
    parser = subparsers.add_parser("download", help="fetch a Wikipedia dump", description=__doc__)
    add = parser.add_argument
    add("--wiki", required=True, help="database's name, such as kowiki")
    add("--date", required=True, help="YYYYMMDD, the day of the dump, such as 20240520")
    add("--out", type=Path, required=True, help="folder of the files")
    add("--kind", choices=KINDS, default=MULTISTREAM, help=f"default: {MULTISTREAM}")
    add("--with-index", action="store_true", help="also the multistream index; `clean` does not need it")
    add("--mirror", action="append", metavar="URL", help="instead of the known mirrors; can be repeated")
    add("--attempts", type=int, default=Patience.attempts, help="at each request (default: 6)")
    add("--first-wait", type=float, default=Patience.first_wait, help="seconds, doubled each time (default: 2)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Downloads what is not there yet and returns 0.

    Raises:
        CorpusError: an option cannot be used, no mirror has the dump, or a file could not be had whole.
    """
    mirrors = _check_options(args)
    patience = Patience(args.attempts, args.first_wait)
    files = select(_checksums(mirrors, args.wiki, args.date, patience), args)
    with disk_full(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        with locked(args.out):
            paths = [_download(file, mirrors, args, patience) for file in files]
    dumps = " ".join(str(path) for path in paths if "-index" not in path.name)
    print(f"complete, checksums match; next: python -m data_prep clean --dump {dumps} --out FOLDER")
    return 0


def _check_options(args: argparse.Namespace) -> list[str]:
    """Returns the mirrors' addresses."""
    if not _WIKI.fullmatch(args.wiki):
        raise CorpusError(f"--wiki is {args.wiki!r}; a database's name is expected; give kowiki or enwiki")
    if not re.fullmatch(r"\d{8}", args.date):
        raise CorpusError(f"--date is {args.date!r}; YYYYMMDD is expected; give the day of a dump, such as 20240520")
    if args.with_index and args.kind != MULTISTREAM:
        raise CorpusError(
            f"--with-index is given with --kind {args.kind}; only {MULTISTREAM} has an index; leave it out"
        )
    if args.attempts < 1 or args.first_wait < 0:
        raise CorpusError(
            f"--attempts is {args.attempts} and --first-wait {args.first_wait}; at least 1 and 0 are expected; "
            "leave them out"
        )
    mirrors = [mirror.rstrip("/") for mirror in args.mirror or MIRRORS]
    for mirror in mirrors:
        if "@" in urlsplit(mirror).netloc:
            raise CorpusError(
                "--mirror holds a user or password (not shown); an address without is expected; "
                "messages and logs show it; leave them out"
            )
        if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).netloc:
            raise CorpusError(f"--mirror is {mirror!r}; an address is expected; give one such as {MIRRORS[0]}")
    return mirrors


def _checksums(mirrors: list[str], wiki: str, date: str, patience: Patience) -> dict[str, tuple[str, str]]:
    """Returns name -> (algorithm, checksum) of a dump's files, from the first mirror that lists them.

    Raises:
        CorpusError: none does; the message says which dates there are.
    """
    problems = []
    patience = Patience(min(patience.attempts, LISTING_ATTEMPTS), patience.first_wait)
    for mirror in mirrors:
        for algorithm in ("sha1", "md5"):
            url = f"{mirror}/{wiki}/{date}/{wiki}-{date}-{algorithm}sums.txt"
            try:
                page = read_page(url, patience)
            except FetchError as error:
                problems.append(error)
                if error.status != 404:
                    break
                continue
            if found := {name: (algorithm, checksum) for checksum, name in _CHECKSUM.findall(page)}:
                return found
            problems.append(FetchError(f"{url} lists no checksums, it starts with {page[:40]!r}"))
    dates = sorted({date for mirror in mirrors for date in _dates(mirror, wiki, patience)}, reverse=True)
    known = f"there are {', '.join(dates[:NUM_DATES])}" if dates else f"no mirror lists dates of {wiki}"
    lines = [f"  {problem}" for problem in problems]
    raise CorpusError("\n".join([f"no mirror has the dump of {wiki} of {date}; {known}; give another --date", *lines]))


def _dates(mirror: str, wiki: str, patience: Patience) -> list[str]:
    """Returns the dates in a mirror's listing; none if it has no listing."""
    try:
        return _DATE.findall(read_page(f"{mirror}/{wiki}/", Patience(1, patience.first_wait)))
    except FetchError:
        return []


def select(checksums: dict[str, tuple[str, str]], args: argparse.Namespace) -> list[RemoteFile]:
    """Returns the files to fetch: the one file of the kind, or its numbered parts in order.

    Names come from the server; only those that a dump has are used, so none can lead out of the folder.

    Raises:
        CorpusError: the dump has no file of the kind.
    """
    kinds = [rf"{args.kind}(\d*)\.xml(?:-p\d+p\d+)?\.bz2"]
    if args.with_index:
        kinds.append(rf"{args.kind}-index(\d*)\.txt(?:-p\d+p\d+)?\.bz2")
    files: list[RemoteFile] = []
    for kind in kinds:
        pattern = re.compile(f"{args.wiki}-{args.date}-{kind}")
        numbers = {name: match[1] for name in checksums if (match := pattern.fullmatch(name))}
        # A dump that has the whole and its parts holds every page twice.
        names = [name for name, number in numbers.items() if not number] or sorted(numbers, key=_natural)
        if not names:
            offered = sorted({name.removeprefix(f"{args.wiki}-{args.date}-") for name in checksums if ".bz2" in name})
            raise CorpusError(
                f"the dump of {args.wiki} of {args.date} has no {args.kind} file; it has {', '.join(offered[:20])}; "
                "give another --kind, or a --date whose dump is finished"
            )
        files += [RemoteFile(name, *checksums[name]) for name in names]
    return files


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _download(file: RemoteFile, mirrors: list[str], args: argparse.Namespace, patience: Patience) -> Path:
    """Fetches one file from the first mirror that gives it whole and returns its path."""
    final = args.out / file.name
    part = final.with_name(f"{final.name}.part")
    if final.exists():
        if (found := _checksum(final, file.algorithm)) != file.checksum:
            raise CorpusError(
                f"{final} has the {file.algorithm} {found}; {file.checksum} is expected; remove it and start again"
            )
        print(f"{final} is there, its checksum matches", file=sys.stderr)
        return final
    problems = []
    # What a run before this one left may be damaged, or of another file: then the first mirror has a second try.
    for mirror in [*mirrors[: part.exists()], *mirrors]:
        url = f"{mirror}/{args.wiki}/{args.date}/{file.name}"
        try:
            fetch(url, part, patience)
        except FetchError as error:
            problems.append(str(error))
            continue
        if (found := _checksum(part, file.algorithm)) == file.checksum:
            part.replace(final)
            return final
        part.unlink()  # it is not known which of its bytes are wrong
        problems.append(f"{url} has the {file.algorithm} {found}; {file.checksum} is expected")
    lines = [f"  {problem}" for problem in problems]
    raise CorpusError("\n".join([f"{file.name}: no mirror gave it; start again or give another --mirror", *lines]))


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
