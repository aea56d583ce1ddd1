"""Bounds on what a chat template from outside may cost: processor time, text and lists, while it is rendered.

Jinja's sandbox keeps a template from files and Python; it lets it loop for ever, and multiply a text until the memory
is full. Here every turn of a loop and every call of a macro looks at the clock, and whatever makes a longer value out
of others is asked for its size first, or pays for it from the budget of the rendering.
"""

import functools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MOST_SECONDS = 5.0
"""Of processor time for one dialogue; a usual template takes a thousandth of a second."""
MOST_CHARACTERS = 16 * 2**20
"""Of one value, or elements of one list; a dialogue of a whole context window has under a million."""
MOST_IN_ALL = 64 * MOST_CHARACTERS
"""Of all values that one rendering makes."""
MOST_DIGITS = 5
"""Of a width in a format."""
_WIDTH = re.compile(rf"\d{{{MOST_DIGITS + 1},}}|%[-+ #\d.]*\*|:[^{{}}]*\{{")


class LimitedTemplate(jinja2.Template):
    """A template whose rendering has its own time and budget."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Returns the text.

        Raises:
            SecurityError: it takes more than the limits of this module.
        """
        assert isinstance(self.environment, LimitedEnvironment)
        self.environment.begin()
        return super().render(*args, **kwargs)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    template_class = LimitedTemplate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local = threading.local()
        self.concat = self.joined_pieces  # type: ignore[method-assign]
        self.globals.pop("lipsum")  # makes text of any length
        for name, function in self.filters.items():
            self.filters[name] = self.limited(function)

    def begin(self) -> None:
        """Starts the time and the budget of a rendering on this thread."""
        self._local.end, self._local.left = time.thread_time() + MOST_SECONDS, MOST_IN_ALL

    def turn(self) -> str:
        """Looks at the clock; every turn of a loop and every macro begins with it."""
        if time.thread_time() > getattr(self._local, "end", math.inf):
            raise SecurityError(f"it runs for more than {MOST_SECONDS:g} s; it loops, or takes the dialogue too often")
        return ""

    def joined(self, *parts: Any) -> str:
        """Returns `a ~ b ~ c`."""
        return self.joined_pieces(map(str, parts))

    def joined_pieces(self, pieces: Iterable[str]) -> str:
        """Returns the pieces of a text as one."""
        found, size = [], 0
        for piece in pieces:
            found.append(piece)
            size += len(piece)
            self._check(size)
        self._pay(size)
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes what an operator gives, unless that is too large."""
        if operator == "+" and _is_sized(left) and _is_sized(right):
            self._pay(len(left) + len(right))
        elif operator == "*" and (_is_sized(left) or _is_sized(right)):
            self._pay(math.prod(len(value) if _is_sized(value) else max(0, int(value)) for value in (left, right)))
        elif operator in ("*", "**") and not (_is_small(left) and _is_small(right, 2**31 if operator == "*" else 64)):
            raise SecurityError(f"it computes with numbers as large as {operator} makes them; a template needs none")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function or method, unless its result would be too large."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | bytes):
            self._check_method(owner, function.__name__, args, kwargs)
        value = super().call(context, function, *args, **kwargs)
        return self._paid(value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns `value` made safe if it is a text's `format`, else None."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__)
            return wrapped(*args, **kwargs)

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a filter that looks at its arguments first and pays for its result."""

        @functools.wraps(function)  # keeps the marks by which Jinja passes it the environment
        def filtered(*args: Any, **kwargs: Any) -> Any:
            index = next((i for i, value in enumerate(args) if isinstance(value, str)), len(args))
            text, rest = (args[index], args[index + 1 :]) if index < len(args) else ("", args)
            self._check_method(text, function.__name__.removeprefix("do_"), rest, kwargs)
            return self._paid(function(*args, **kwargs))

        return filtered

    def _check_method(self, text: str | bytes, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        numbers = [abs(value) for value in values if isinstance(value, int)]
        if numbers:  # a width, a number of spaces: for each line or tab at worst
            times = 1 + str(text).count("\n") + str(text).count("\t") if name in ("indent", "expandtabs") else 1
            self._check(max(numbers) * times)
        if name == "replace":
            old, new = [*(value for value in values if isinstance(value, str)), "", ""][:2]
            self._check(len(text) + str(text).count(old) * len(new))
        if name in ("format", "format_map"):
            _check_format(str(text))
        if name == "join":
            pieces = next((value for value in values if isinstance(value, list | tuple)), [])
            glue = sum(len(value) for value in (text, *values) if isinstance(value, str))
            self._check(sum(len(piece) + glue for piece in pieces if isinstance(piece, str)))

    def _paid(self, value: Any) -> Any:
        if _is_sized(value):
            self._pay(len(value))
        return value

    def _pay(self, size: int) -> None:
        self._check(size)
        self._local.left = getattr(self._local, "left", MOST_IN_ALL) - size
        if self._local.left < 0:
            raise SecurityError(f"it makes texts and lists of more than {MOST_IN_ALL} characters or elements in all")

    def _check(self, size: int) -> None:
        if size > MOST_CHARACTERS:
            raise SecurityError(
                f"it makes a text or list of {size} characters or elements; {MOST_CHARACTERS} are allowed"
            )


class _Counting(NodeTransformer):
    """Lets every loop and macro look at the clock, and every `~` go through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_turn(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_turn(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_turn(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)

    def _with_turn(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("turn", [], node.lineno), lineno=node.lineno))
        found: nodes.Node = node
        return found


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    """Returns the call of a method of the environment, which no template can take the name of."""
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)


def _is_sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _is_small(value: Any, limit: int = 2**31) -> bool:
    return not isinstance(value, int | float) or abs(value) < limit


def _check_format(text: str) -> None:
    if _WIDTH.search(text):
        raise SecurityError(f"it formats with a width of more than {MOST_DIGITS} digits, or one that it computes")
