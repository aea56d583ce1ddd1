"""The command `dialogue` with its own subcommands `generate` and `augment`."""

from typing import Any

from data_prep.dialogue import augment, generate


def add_parser(subparsers: Any) -> None:
    """Adds the command `dialogue`."""
    parser = subparsers.add_parser("dialogue", help="generate dialogues, or make chat examples of them")
    inner = parser.add_subparsers(dest="dialogue_command", required=True, metavar="SUBCOMMAND", title="subcommands")
    generate.add_parser(inner)
    augment.add_parser(inner)
