"""Parts of a configuration that stand inside lists and mappings, read against their dataclasses."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def read_typed(schema: type[T], value: Any, where: str, problems: list[str]) -> T | None:
    """Returns `value` as the dataclass `schema`, or None after adding everything that is wrong to `problems`.

    Args:
        schema: dataclass with defaults for all fields, or MISSING for one that must be set.
        value: plain mapping of its fields.
        where: the key that holds the value, for the messages.
        problems: gets one line for each unknown key, wrong type and unset key.
    """
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        problems.append(f"{where}: is {value!r}; a mapping is expected; write it with the keys {', '.join(names)}")
        return None
    before, cfg = len(problems), OmegaConf.structured(schema)
    for key, item in value.items():
        if key not in names:
            problems.append(f"{where}.{key}: unknown key; {suggest(key, names)}")
            continue
        try:
            cfg = OmegaConf.merge(cfg, {key: item})
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            problems.append(f"{where}.{key}: {str(error).splitlines()[0]}; give a value of that type")
    for key in OmegaConf.missing_keys(cfg):
        problems.append(f"{where}.{key}: no value; set it")
    return OmegaConf.to_object(cfg) if len(problems) == before else None  # type: ignore[return-value]


def suggest(name: object, known: Iterable[str]) -> str:
    """Returns the second half of a message on an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the known ones are {', '.join(known)}"
