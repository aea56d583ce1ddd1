"""The corpus commands: `python -m data_prep SUBCOMMAND --help`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from configs.entry import exit_code_of

PROGRAM = "python -m data_prep"
COMMANDS = (
    "data_prep.wiki.download",
    "data_prep.corpus.clean",
    "data_prep.dedup.command",
    "data_prep.tokens.encode",
    "data_prep.tokens.extend_vocab",
    "data_prep.tokens.stats",
    "data_prep.tokens.inspection",
    "data_prep.dedup.cluster",
    "data_prep.dialogue.commands",
    "data_prep.dialogue.augment",
    "data_prep.sample.build",
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, usage=f"{PROGRAM} [-h] SUBCOMMAND ...", description="Text in, token shards out."
    )
    subparsers = parser.add_subparsers(
        dest="command", required=True, prog=PROGRAM, title="subcommands", metavar="SUBCOMMAND (each has its --help)"
    )
    for name in COMMANDS:
        importlib.import_module(name).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code, as of `exit_code_of`; 3 is the command's own."""
    args = make_parser().parse_args(arguments)
    return exit_code_of(lambda: int(args.run(args)))


if __name__ == "__main__":
    sys.exit(main())
