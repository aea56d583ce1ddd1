"""Reads a run's configuration: schema defaults < `base` file < YAML file < command line.

A schema is a dataclass; its fields are the only keys a file may set. Every problem of a
configuration is collected and raised at once, before any long work starts.
"""

import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.secrets import secret_problems

COMPONENT = "_component_"
COMPONENT_PACKAGES = ("bitsandbytes", "recipes", "torch", "torchao", "torchtune")
"""A configuration may come from somebody else; importing any other module could run code of theirs."""


class UserError(ValueError):
    """Something the user can mend: the message says what is wrong, the limit, and what to change."""


class ConfigError(UserError):
    """A run's configuration cannot be used; the message lists every problem with its key."""

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        lines = [f"{path}: {len(problems)} problem(s)", *(f"  - {problem}" for problem in problems)]
        super().__init__("\n".join(lines))
        self.problems = list(problems)


def load(
    schema: type,
    path: str | Path,
    overrides: Sequence[str] = (),
    check: Callable[[DictConfig], list[str]] | None = None,
) -> DictConfig:
    """Merges the schema's defaults, the file's `base`, the file and the overrides.

    Args:
        schema: dataclass whose fields are the only top-level keys a file may set.
        path: YAML file; its optional `base` names another one, relative to it (one level deep).
        overrides: `key.subkey=value` strings, as on the command line; values are read as YAML.
        check: looks at the merged configuration and returns further problems.

    Returns:
        A read-only configuration with every key of the schema.

    Raises:
        ConfigError: all at once: unknown keys, wrong types, unset keys, unknown components,
            and what `check` found.
    """
    problems: list[str] = []
    cfg = OmegaConf.structured(schema)
    for origin, layer in [*_file_layers(Path(path)), ("command line", _override_layer(schema, path, overrides))]:
        problems += secret_problems(layer)  # before merging puts the environment's values in
        unknown = set(_unknown_keys(schema, layer, ""))
        problems += [_explain_unknown(schema, key, origin) for key in sorted(unknown)]
        for key in [
            k
            for k in map(str, layer)
            if not OmegaConf.is_missing(layer, k)
            and not any(u == k or u.startswith((f"{k}.", f"{k}[")) for u in unknown)
        ]:
            try:
                if _swaps_component(cfg, layer, key):
                    cfg[key] = {}
                cfg = OmegaConf.merge(cfg, {key: layer._get_node(key)})  # ${...} of a base sees this file's values
            except (OmegaConfBaseException, TypeError, ValueError) as error:
                problems.append(f"{key} ({origin}): {str(error).splitlines()[0]}")
    wrong = {problem.split(" ")[0].split(":")[0] for problem in problems}
    try:
        missing = _missing(cfg)
    except OmegaConfBaseException as error:
        missing = []
        problems.append(f"{' '.join(str(error).split())}; keys of this file are expected; mend the ${{...}}")
    problems += [f"{key}: no value; set it in the file or as {key}=..." for key in missing if key not in wrong]
    if not problems:
        problems += _component_problems(cfg)
        problems += check(cfg) if check else []
    if problems:
        raise ConfigError(path, problems)
    OmegaConf.set_readonly(cfg, True)
    return cfg


def resolve(name: str) -> Any:
    """Returns the object that a `_component_` value such as `torch.optim.AdamW` names.

    Raises:
        ImportError: the module cannot be imported, has no such attribute, or is of no package of `COMPONENT_PACKAGES`.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ImportError(f"{name!r} has no module part; write it as package.module.Name")
    if module.partition(".")[0] not in COMPONENT_PACKAGES:
        known = ", ".join(COMPONENT_PACKAGES)
        raise ImportError(f"{name!r} is of none of the packages {known}; put a class of your own under recipes/")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise ImportError(f"module {module!r} has no {attribute!r}") from None


def instantiate(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Calls the node's `_component_` with `args`, the node's other keys and `kwargs`."""
    arguments = typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return resolve(arguments.pop(COMPONENT))(*args, **arguments, **kwargs)


def one_of(cfg: DictConfig, key: str, allowed: Sequence[str]) -> list[str]:
    """Returns a problem if the value of `key` is not among `allowed`."""
    value = OmegaConf.select(cfg, key)
    return [] if value in allowed else [f"{key}: {value!r} is not known; one of {', '.join(allowed)}"]


def positive(cfg: DictConfig, *keys: str) -> list[str]:
    """Returns a problem for every key whose value is set and not above zero."""
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return [
        f"{key}: {value} is not positive; set it above 0"
        for key, value in values.items()
        if value is not None and value <= 0
    ]


def existing_path(cfg: DictConfig, *keys: str) -> list[str]:
    """Returns a problem for every key whose value is set and names no file or folder."""
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return [
        f"{key}: {value} does not exist; give an existing path as {key}=..."
        for key, value in values.items()
        if value is not None and not Path(value).exists()
    ]


def _file_layers(path: Path) -> Iterator[tuple[str, DictConfig]]:
    layer = _read_mapping(path)
    base = layer.pop("base", None)
    if base is not None:
        base_path = path.parent / str(base)
        below = _read_mapping(base_path)
        if "base" in below:
            raise ConfigError(path, [f"base: {base_path} has a base itself; one level is allowed, merge the two"])
        yield str(base_path), below
    yield str(path), layer


def _read_mapping(path: Path) -> DictConfig:
    try:
        layer = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(path, ["the file does not exist; give an existing YAML file"]) from None
    except Exception as error:  # yaml.YAMLError and OmegaConf's own, which share no base class
        raise ConfigError(path, [f"is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(layer, DictConfig):
        raise ConfigError(path, ["holds no mapping; write one `key: value` a line"])
    return layer


def _override_layer(schema: type, path: object, overrides: Sequence[str]) -> DictConfig:
    if bad := [item for item in overrides if "=" not in item or item.startswith("=")]:
        raise ConfigError(path, [f"{item!r} on the command line; write it as key=value" for item in bad])
    hints = typing.get_type_hints(schema)
    pairs = [item.split("=", 1) for item in overrides]
    texts = {key: value for key, value in pairs if _without_none(hints.get(key)) is str and value != "null"}
    try:  # the value of a text key is taken as it stands: prompt="Translate: hello" is no YAML mapping
        layer = OmegaConf.from_dotlist([item for item in overrides if item.split("=", 1)[0] not in texts])
        return OmegaConf.merge(layer, texts)  # type: ignore[return-value]
    except Exception as error:
        raise ConfigError(path, [f"command line: {' '.join(str(error).split())}"]) from None


def _unknown_keys(schema: Any, node: Any, prefix: str) -> Iterator[str]:
    """Yields the dotted keys of `node` that the dataclass `schema` (or a list of it) does not have."""
    if typing.get_origin(schema) is list and isinstance(node, ListConfig):
        for index, element in enumerate(node):
            yield from _unknown_keys(typing.get_args(schema)[0], element, f"{prefix[:-1]}[{index}].")
    elif dataclasses.is_dataclass(schema) and isinstance(node, DictConfig):
        hints = typing.get_type_hints(schema)
        for key in map(str, node):
            if key not in hints:
                yield f"{prefix}{key}"
            elif not OmegaConf.is_missing(node, key):
                yield from _unknown_keys(_without_none(hints[key]), node._get_node(key), f"{prefix}{key}.")


def _without_none(hint: Any) -> Any:
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    is_optional = type(None) in typing.get_args(hint) and len(arguments) == 1
    return arguments[0] if is_optional else hint


def _explain_unknown(schema: Any, key: str, origin: str) -> str:
    *parents, last = key.split(".")
    for parent in parents:
        hint = _without_none(typing.get_type_hints(schema)[parent.split("[")[0]])
        schema = typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint
    names = [f.name for f in dataclasses.fields(schema)]
    close = difflib.get_close_matches(last, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(names)}"
    return f"{key} ({origin}): unknown key; {hint}"


def _missing(cfg: DictConfig) -> list[str]:
    return sorted(map(str, OmegaConf.missing_keys(cfg)))


def _swaps_component(cfg: DictConfig, layer: DictConfig, key: str) -> bool:
    """Whether `layer` names another `_component_` for `key`, so the old one's arguments must go."""
    old, new = _component_of(cfg._get_node(key)), _component_of(layer._get_node(key))
    return None not in (old, new) and old != new


def _component_of(node: Any) -> str | None:
    is_filled = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()
    return node.get(COMPONENT) if is_filled else None


def _component_problems(cfg: DictConfig) -> list[str]:
    problems = []
    for key in map(str, cfg):
        node = cfg._get_node(key)
        component = _component_of(node)
        if component is None:
            continue
        try:
            signature = inspect.signature(resolve(component))
        except ImportError as error:
            problems.append(f"{key}.{COMPONENT}: {component!r} cannot be imported: {error}; name an existing one")
            continue
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for name in map(str, typing.cast(DictConfig, node)):
            if name != COMPONENT and name not in signature.parameters and not takes_any:
                close = difflib.get_close_matches(name, list(signature.parameters), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(signature.parameters)}"
                problems.append(f"{key}.{name}: {component} has no such argument; {hint}")
    return problems
