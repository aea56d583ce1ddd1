"""MediaWiki's magic words and parser functions, as far as an article's text depends on them."""

import ast
import operator
import re
from collections.abc import Callable

_ARITHMETIC = re.compile(r"[\d\s.+\-*/()]{1,60}", re.ASCII)
_TITLES = {
    "pagename",
    "문서이름",
    "fullpagename",
    "전체문서이름",
    "basepagename",
    "subpagename",
    "rootpagename",
    "본문이름",
}
_DATES = {  # places of an ISO 8601 timestamp, and whether a leading zero stays
    "currentyear": (0, 4, True),
    "localyear": (0, 4, True),
    "현재년": (0, 4, True),
    "현재연": (0, 4, True),
    "currentmonth": (5, 7, True),
    "currentmonth1": (5, 7, False),
    "localmonth": (5, 7, True),
    "localmonth1": (5, 7, False),
    "현재월": (5, 7, False),
    "currentday": (8, 10, False),
    "currentday2": (8, 10, True),
    "localday": (8, 10, False),
    "현재일": (8, 10, False),
}
_TEXT: dict[str, Callable[[str], str]] = {
    "formatnum": str,
    "숫자서식": str,
    "nowrap": str,
    "lc": str.lower,
    "소문자": str.lower,
    "uc": str.upper,
    "대문자": str.upper,
    "lcfirst": lambda text: text[:1].lower() + text[1:],
    "ucfirst": lambda text: text[:1].upper() + text[1:],
}
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def magic_word(name: str, title: str, timestamp: str) -> str | None:
    """Returns the value of `{{PAGENAME}}`, `{{CURRENTYEAR}}` and the like; None if `name` is none of them.

    Args:
        name: as written in the page.
        title: the page's.
        timestamp: of the revision, ISO 8601 or empty; what is "current" is so for its author.
    """
    name = name.casefold()
    if name in _TITLES:
        return title
    if name not in _DATES:
        return None
    start, end, is_padded = _DATES[name]
    value = timestamp[start:end]
    return value if is_padded else value.lstrip("0")


def call_function(head: str, parts: list[str]) -> str:
    """Returns the text of `{{#if: a | b | c}}`, `{{formatnum: 1}}` and the like; empty for functions without text.

    Args:
        head: the name, the colon and the first argument.
        parts: the further arguments.
    """
    name, _, first = head.partition(":")
    name, first = name.strip().casefold(), first.strip()
    rest = [part.strip() for part in parts]
    if name in _TEXT:
        return _TEXT[name](first)
    if name == "#if":
        return _nth(rest, 0 if first else 1)
    if name == "#ifeq":
        return _nth(rest, 1 if first == _nth(rest, 0) else 2)
    if name == "#switch":
        return _switch(first, rest)
    if name == "#expr":
        return _expression(first)
    return ""


def _nth(parts: list[str], index: int) -> str:
    return parts[index] if index < len(parts) else ""


def _switch(value: str, cases: list[str]) -> str:
    default = ""
    falls_through = False
    for case in cases:
        key, equals, result = (text.strip() for text in case.partition("="))
        if not equals:
            default, falls_through = key, falls_through or key == value
        elif falls_through or key == value:
            return result
        elif key == "#default":
            default = result
    return default


def _expression(text: str) -> str:
    """Adds, subtracts, multiplies and divides; empty for anything else."""
    if not _ARITHMETIC.fullmatch(text):
        return ""
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        return ""
    return f"{value:.12g}"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("not arithmetic")
