"""Text in, token shards out. No torch; one command: `python -m data_prep SUBCOMMAND`."""
