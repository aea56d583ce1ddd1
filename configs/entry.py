"""Entry points of programs: their command lines, how they end, and what they say then."""

import argparse
import dataclasses
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import Any, TextIO

from omegaconf import DictConfig

from configs.loader import ConfigError, UserError, load


def parse(
    schema: type, check: Callable[[DictConfig], list[str]] | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes `main(cfg)` an entry point that `tune run`, `torchrun -m` and `python -m` can all launch.

    It ends as `exit_code_of` says. A boolean field with the metadata `flag` may also be given as --NAME; another one,
    whose `flag` is what its value is called, as --NAME VALUE.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(main)
        def entry() -> None:
            parser = argparse.ArgumentParser(description=main.__doc__)
            parser.add_argument("--config", required=True, help="YAML file, e.g. configs/cpt/llama3_8b_ko.yaml")
            parser.add_argument("overrides", nargs="*", metavar="key=value")
            flags = {field.name: field.metadata["flag"] for field in dataclasses.fields(schema) if field.metadata}
            for name, flag in flags.items():
                if flag is True:
                    parser.add_argument(f"--{name}", action="store_const", const="true", help=f"means {name}=true")
                else:
                    parser.add_argument(f"--{name}", metavar=flag, help=f"means {name}={flag}")
            args = parser.parse_intermixed_args()
            overrides = [*args.overrides, *(f"{name}={value}" for name in flags if (value := getattr(args, name)))]
            sys.exit(exit_code_of(lambda: main(load(schema, args.config, overrides, check))))

        return entry

    return decorate


def exit_code_of(program: Callable[[], int | None]) -> int:
    """Runs a program, says why it ended early, and returns its exit code.

    That is the program's own; 1 behind a `UserError`, 2 behind a `ConfigError`, 130 if it was interrupted, and 141, as
    of a program that SIGPIPE ends, if what read its output, such as `head`, has left. Of several ranks only the first
    prints, as all of them find the same.
    """
    try:
        code = program()
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        _say(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        _say("interrupted; what is complete is kept")
        return 130
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 141


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def _is_read(stream: TextIO) -> bool:
    """Whether somebody still reads the pipe that a stream writes to; anything else is taken to be read."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # a pipe without a reader is told unasked
    return not any(event & select.POLLERR for _, event in poll.poll(0))
