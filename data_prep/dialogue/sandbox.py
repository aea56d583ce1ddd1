"""The Jinja environment of chat templates: what transformers offers them, and no way out of it."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from data_prep.dialogue.render_limits import LimitedEnvironment

# What a template may raise from within: its own refusals, and what its expressions run into.
RENDER_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, MemoryError),
)


class GenerationTag(jinja2.ext.Extension):
    """Lets `{% generation %}` pass, with which some templates mark the assistant's text."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns what stands between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandbox(now: Callable[[], datetime]) -> jinja2.Environment:
    """Returns an environment with what transformers offers to templates."""
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = environment.limited(_to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


def fields_read(environment: jinja2.Environment, template: str) -> set[str]:
    """Returns the names that a template asks for as `a.name` or `a['name']`."""
    tree = environment.parse(template)
    constants = [node.arg for node in tree.find_all(jinja2.nodes.Getitem)]
    return {node.attr for node in tree.find_all(jinja2.nodes.Getattr)} | {
        str(node.value) for node in constants if isinstance(node, jinja2.nodes.Const)
    }


def _to_json(value: object, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
