"""Four documents, and a command's launch without a process."""

import argparse

from data_prep.document import Document

DOCUMENTS = [
    Document("1", "한강은 서울을 지나 서해로 흐른다.", "wiki", "ko", "한강"),
    Document("2", "A text without a title.", "web", "en"),
    Document("3", "서울은 수도이다. " * 50, "wiki", "ko", "서울"),
    Document("4", "river", "wiki", "en"),
]


def launch(module, *arguments):
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(list(map(str, arguments)))
    return args.run(args)
