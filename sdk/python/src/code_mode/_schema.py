"""JSON Schemas from type hints, and values of the hinted types from JSON."""

from __future__ import annotations

import base64
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import math
import pathlib
import re
import sys
import types
import typing
import uuid
from typing import Any, Callable, Mapping

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
    dict: {"type": "object"},
    list: {"type": "array"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    decimal.Decimal: {"type": ["string", "number"]},
    pathlib.Path: {"type": "string"},
}

#: How values of types that JSON lacks are made from a JSON string, or a number.
_FROM_JSON: dict[Any, Callable[[Any], Any]] = {
    # Python before 3.11 does not read a `Z`.
    datetime.datetime: lambda text: datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")),
    datetime.date: datetime.date.fromisoformat,
    datetime.time: datetime.time.fromisoformat,
    uuid.UUID: uuid.UUID,
    decimal.Decimal: lambda value: decimal.Decimal(str(value)),
    pathlib.Path: pathlib.Path,
    bytes: base64.b64decode,
}

#: Origins of hints for lists, and for objects with values of one type.
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_OBJECTS = (dict, collections.abc.Mapping)


def _is_pydantic(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "model_json_schema")


def _adapter(hint: Any) -> Any:
    """Pydantic's reader of a hint that has one of its models or a constraint in it, else ``None``."""
    if "pydantic" not in sys.modules or not _is_for_pydantic(hint):
        return None
    import pydantic

    return pydantic.TypeAdapter(hint)


def _is_for_pydantic(hint: Any) -> bool:
    if _is_pydantic(hint):
        return True
    if typing.get_origin(hint) is typing.Annotated:
        notes = hint.__metadata__
        if any(type(note).__module__.split(".")[0] in ("annotated_types", "pydantic") for note in notes):
            return True
    return any(_is_for_pydantic(arg) for arg in typing.get_args(hint) if not isinstance(arg, (str, int)))


def schema_of(hint: Any, within: tuple[Any, ...] = ()) -> Schema:
    """The JSON Schema of a type hint; one that takes everything for a type within itself.

    Raises:
        TypeError: the hint is of a type that JSON has no form for here.
    """
    if any(hint is one for one in within):
        return {}
    try:
        if hint in _PLAIN:
            return dict(_PLAIN[hint])
    except TypeError:
        pass
    if (adapter := _adapter(hint)) is not None:
        return typing.cast(Schema, adapter.json_schema())
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        within = (*within, hint)
    if origin is typing.Annotated:
        schema = schema_of(args[0], within)
        said = [note for note in args[1:] if isinstance(note, str)]
        described = [getattr(note, "description", None) for note in args[1:]]
        said += [text for text in described if isinstance(text, str)]
        return {**schema, "description": said[0]} if said else schema
    if origin is typing.Union or origin is types.UnionType:
        return {"anyOf": [schema_of(arg, within) for arg in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in _LISTS or hint in (set, frozenset):
        return {"type": "array", "items": schema_of(args[0], within) if args else {}}
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return {"type": "array", "items": schema_of(args[0], within)}
        count = len(args)
        items = [schema_of(arg, within) for arg in args]
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    if origin in _OBJECTS:
        return {"type": "object", "additionalProperties": schema_of(args[1], within) if args else {}}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        fields = [field for field in dataclasses.fields(hint) if field.init]
        needed = [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        return _object({field.name: schema_of(hints[field.name], within) for field in fields}, needed)
    if typing.is_typeddict(hint):
        hints = _hints(hint)
        plain = {name: _unwrapped(hint) for name, hint in hints.items()}
        names: frozenset[str] = getattr(hint, "__required_keys__", frozenset())
        needed = sorted(names)
        return _object({name: schema_of(hint, within) for name, hint in plain.items()}, needed)
    raise TypeError(f"{getattr(hint, '__name__', repr(hint))} has no JSON Schema here: use Any, or give the tool an input_schema")


def _unwrapped(hint: Any) -> Any:
    """The type in ``Required[...]`` and ``NotRequired[...]``."""
    name = getattr(typing.get_origin(hint), "_name", "")
    return typing.get_args(hint)[0] if name in ("Required", "NotRequired") else hint


def _object(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def value_of(hint: Any, value: Any) -> Any:
    """JSON as the hinted type: a pydantic model, a dataclass, an enum, a set, bytes."""
    if (adapter := _adapter(hint)) is not None:
        return adapter.validate_python(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return value_of(args[0], value)
    if origin is typing.Union or origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        # The host has checked that the value is of one of them.
        of = rest[0] if len(rest) == 1 else next((arg for arg in rest if _fits(arg, value)), Any)
        return value_of(of, value)
    if isinstance(value, dict) and len(args) == 2:
        if origin in _OBJECTS:
            return {name: value_of(args[1], one) for name, one in value.items()}
    if isinstance(value, list):
        if origin in _LISTS:
            items = [value_of(args[0], item) for item in value] if args else value
            return origin(items) if origin in (set, frozenset) else items
        if hint in (set, frozenset):
            return hint(value)
        if origin is tuple:
            of = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
            return tuple(value_of(one, item) for one, item in zip(of, value))
    if isinstance(hint, type) and hint in _FROM_JSON and isinstance(value, (str, int, float)):
        return _FROM_JSON[hint](value)
    if typing.is_typeddict(hint) and isinstance(value, dict):
        hints = {name: _unwrapped(one) for name, one in _hints(hint).items()}
        return {name: value_of(hints.get(name, Any), one) for name, one in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        hints = _hints(hint)
        return hint(**{name: value_of(hints.get(name, Any), one) for name, one in value.items()})
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a hinted type, as far as its outermost type says."""
    if isinstance(value, dict) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        schema = schema_of(hint)
        return set(schema["required"]) <= set(value) <= set(schema["properties"])
    if isinstance(value, dict) and typing.is_typeddict(hint):
        return frozenset(getattr(hint, "__required_keys__", ())) <= frozenset(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    kind = schema_of(hint).get("type", [])
    own = kinds.get(type(value))
    said = [kind] if isinstance(kind, str) else kind
    return own in said or (own == "integer" and "number" in said)


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, where some of its arguments are bound already."""
    return whole(function.func) if isinstance(function, functools.partial) else function


class Signature:
    """What a function takes, as far as programs may pass it."""

    def __init__(self, function: Callable[..., Any], context: type) -> None:
        self.hints = _hints(whole(function))
        self.context: str | None = None
        self.takes_all = False
        properties: dict[str, Schema] = {}
        required: list[str] = []
        described = _arguments(inspect.getdoc(whole(function)) or "")
        bound = _bound(function)
        said = getattr(whole(function), "__name__", repr(function))
        self.defaults: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            hint = self.hints.get(name, Any)
            if name in bound:
                # Whoever made the tool has chosen it; no program may choose another.
                continue
            if isinstance(hint, Unresolved):
                raise TypeError(f"the hint of {name} of {said}: {hint}")
            if hint is context or context in typing.get_args(hint):
                self.context = name
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                self.takes_all = True
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise TypeError(
                    f"{function!r} cannot be a tool: programs pass arguments by name, and {name} has none"
                )
            try:
                schema = schema_of(hint)
            except TypeError as error:
                raise TypeError(f"the hint of {name} of {said}: {error}") from error
            if name in described:
                schema.setdefault("description", described[name])
            if parameter.default is parameter.empty:
                required.append(name)
            else:
                _add_default(schema, parameter.default)
                self.defaults[name] = parameter.default
            properties[name] = schema
        self.schema = _object(properties, required)
        if self.takes_all:
            self.schema["additionalProperties"] = True
        _lift_definitions(self.schema)
        returned = self.hints.get("return", Any)
        self.output = _output(returned) or None

    def arguments(self, given: Any) -> dict[str, Any]:
        """The keyword arguments of a call."""
        if not isinstance(given, dict):
            raise TypeError("the input must be an object")
        read = {name: value_of(self.hints.get(name, Any), value) for name, value in given.items()}
        return {**self.defaults, **read}


def _output(returned: Any) -> Schema:
    """The schema of a result: of any, where its hint says nothing that JSON has a form for."""
    if returned is type(None) or isinstance(returned, Unresolved):
        return {}
    try:
        return schema_of(returned)
    except TypeError:
        return {}


def _bound(function: Callable[..., Any]) -> set[str]:
    """The names of the arguments that `functools.partial` has bound."""
    if not isinstance(function, functools.partial):
        return set()
    return set(function.keywords) | _bound(function.func)


class Unresolved(str):
    """Why a hint has no type."""


def _hints(function: Any) -> dict[str, Any]:
    """The type hints of a function, or of the `__call__` of an object. One that cannot be resolved is
    :class:`Unresolved`, and the others stay."""
    if not isinstance(function, (types.FunctionType, types.MethodType, type)):
        inner: Callable[..., Any] = getattr(type(function), "__call__", function)
        function = getattr(function, "func", inner)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        pass
    found: dict[str, Any] = {}
    module = sys.modules.get(getattr(function, "__module__", ""))
    names = dict(vars(module)) if module is not None else {}
    if isinstance(function, type):
        names[function.__name__] = function
    for name, hint in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        try:
            found |= typing.get_type_hints(alone, globalns=names, include_extras=True)
        except Exception:
            found[name] = Unresolved(f"{hint} is not known in its module: define it there, or give the tool an input_schema")
    return found


def _add_default(schema: Schema, default: Any) -> None:
    if isinstance(default, float) and not math.isfinite(default):
        return
    if isinstance(default, (str, int, float, bool, type(None))):
        schema["default"] = default


def _lift_definitions(schema: Schema) -> None:
    """Moves the ``$defs`` of pydantic models to the root, where their references point."""
    definitions: Schema = {}

    def lift(part: Any) -> None:
        if isinstance(part, dict):
            found = part.pop("$defs", None)
            if isinstance(found, dict):
                lift(found)
                definitions.update(found)
            for one in part.values():
                lift(one)
        elif isinstance(part, list):
            for one in part:
                lift(one)

    lift(schema["properties"])
    if definitions:
        schema["$defs"] = definitions


def description_of(function: Callable[..., Any]) -> str:
    """The part of a docstring that is about the function, and not about its arguments."""
    text = inspect.getdoc(function) or ""
    return re.split(r"\n\s*\n?(?=(?:Args|Arguments|Parameters|Returns|Raises):)", text)[0].strip()


def _arguments(doc: str) -> dict[str, str]:
    """What a docstring in Google's style says of each argument."""
    found = re.search(r"^(?:Args|Arguments|Parameters):\s*\n((?:[ \t]+.*\n?|\s*\n)+)", doc, re.M)
    if not found:
        return {}
    said: dict[str, str] = {}
    name = None
    for line in found.group(1).splitlines():
        begins = re.match(r"\s{1,4}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if begins:
            name = begins.group(1)
            said[name] = begins.group(2).strip()
        elif name and line.strip():
            said[name] += " " + line.strip()
    return said
