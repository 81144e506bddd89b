"""JSON Schemas from type hints, and values of the hinted types from JSON."""

from __future__ import annotations

import base64
import collections.abc
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import json
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
    bytes: lambda text: base64.b64decode(text, validate=True),
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
    """JSON as the hinted type.

    Raises:
        TypeError, ValueError: it is not of that type. The host has checked it, as far as it can read
            the schema; a function gets what its hints say in any case.
    """
    if hint is Any or hint is object or isinstance(hint, Unresolved):
        return value
    if (adapter := _adapter(hint)) is not None:
        return adapter.validate_python(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return value_of(args[0], value)
    if origin is typing.Union or origin is types.UnionType:
        return _first_that_fits(args, value)
    if origin is typing.Literal:
        return _one_of(args, value)
    if hint is None or hint is type(None):
        return _only_if(value is None, hint, value)
    if origin in _LISTS or hint in (list, set, frozenset):
        _only_if(isinstance(value, list), hint, value)
        items = [value_of(args[0], item) for item in value] if args else value
        kind = origin or hint
        return kind(items) if kind in (set, frozenset) else items
    if origin is tuple:
        of = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        _only_if(isinstance(value, list) and len(value) == len(of), hint, value)
        return tuple(value_of(one, item) for one, item in zip(of, value))
    if origin in _OBJECTS or hint is dict:
        _only_if(isinstance(value, dict), hint, value)
        return {_key(args[0], name): value_of(args[1], one) for name, one in value.items()} if args else value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _one_of(tuple(hint), value)
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _record(hint, value)
    return _plain(hint, value)


def _only_if(fits: bool, hint: Any, value: Any) -> Any:
    if not fits:
        raise TypeError(f"{value!r:.80} is not {getattr(hint, '__name__', hint)}")
    return value


def _plain(hint: Any, value: Any) -> Any:
    """A text, a number, or a value made of one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool or hint is str:
        return _only_if(type(value) is hint, hint, value)
    if hint is int:
        # JSON does not tell 1.0 from 1.
        return int(_only_if(is_number and math.isfinite(value) and value == int(value), hint, value))
    if hint is float:
        return float(_only_if(is_number and math.isfinite(value), hint, value))
    if hint in _FROM_JSON:
        is_text = isinstance(value, str) or (hint is decimal.Decimal and is_number)
        return _FROM_JSON[hint](_only_if(is_text, hint, value))
    raise TypeError(f"nothing is read as {hint!r}")


def _first_that_fits(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        try:
            return value_of(hint, value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{value!r:.80} fits none of {', '.join(getattr(one, '__name__', str(one)) for one in hints)}")


def _one_of(members: tuple[Any, ...], value: Any) -> Any:
    """The literal, or the member of an enum, that a value stands for."""
    for member in members:
        own = member.value if isinstance(member, enum.Enum) else member
        if isinstance(own, bool) == isinstance(value, bool) and own == value:
            return member
    raise ValueError(f"{value!r:.80} fits none of {', '.join(repr(member) for member in members)}")


def _key(hint: Any, name: str) -> Any:
    """The key of an object, which is a text in JSON."""
    try:
        return value_of(hint, name)
    except (TypeError, ValueError):
        return value_of(hint, int(name))


def _record(hint: Any, value: Any) -> Any:
    """A dataclass, or a `TypedDict`."""
    _only_if(isinstance(value, dict), hint, value)
    schema = schema_of(hint)
    _only_if(set(schema["required"]) <= set(value) <= set(schema["properties"]), hint, value)
    hints = {name: _unwrapped(one) for name, one in _hints(hint).items()}
    members = {name: value_of(hints.get(name, Any), one) for name, one in value.items()}
    return members if typing.is_typeddict(hint) else typing.cast(Any, hint)(**members)


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, where some of its arguments are bound already."""
    return whole(function.func) if isinstance(function, functools.partial) else function


class Signature:
    """What a function takes, as far as programs may pass it."""

    def __init__(self, function: Callable[..., Any], context: type) -> None:
        self.hints = _hints(whole(function))
        self.context: str | None = None
        self.takes_all = False
        self.others: Any = Any
        properties: dict[str, Schema] = {}
        required: list[str] = []
        described = _arguments(inspect.getdoc(whole(function)) or "")
        #: What whoever made the tool has chosen; no program may choose another.
        self.bound = _bound(function)
        said = getattr(whole(function), "__name__", repr(function))
        self.defaults: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            hint = self.hints.get(name, Any)
            if name in self.bound:
                continue
            if isinstance(hint, Unresolved):
                raise TypeError(f"the hint of {name} of {said}: {hint}")
            if hint is context or context in typing.get_args(hint):
                self.context = name
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                self.takes_all = True
                self.others = hint
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
            self.schema["additionalProperties"] = schema_of(self.others) or True
        _lift_definitions(self.schema)
        returned = self.hints.get("return", Any)
        self.output = _output(returned) or None

    def arguments(self, given: Any) -> dict[str, Any]:
        """The keyword arguments of a call."""
        if not isinstance(given, dict):
            raise TypeError("the input must be an object")
        known: Schema = self.schema["properties"]
        read = {}
        for name, value in given.items():
            if name in self.bound or name == self.context or not (name in known or self.takes_all):
                raise TypeError(f"the argument {name} does not exist")
            read[name] = value_of(self.hints.get(name, Any) if name in known else self.others, value)
        if missing := [name for name in self.schema["required"] if name not in read]:
            raise TypeError(f"the argument {missing[0]} is missing")
        # A default that can be changed is not shared between calls.
        return {**{name: _fresh(value) for name, value in self.defaults.items()}, **read}


def _fresh(default: Any) -> Any:
    """A default for one call."""
    if not isinstance(default, (list, dict, set, bytearray)):
        return default
    try:
        return copy.deepcopy(default)
    except Exception:  # noqa: BLE001 - it has something that cannot be copied
        return copy.copy(default)


def _output(returned: Any) -> Schema:
    """The schema of a result: of any, where its hint says nothing that JSON has a form for."""
    # Bytes become a resource.
    if returned in (type(None), bytes) or isinstance(returned, Unresolved):
        return {}
    try:
        return schema_of(returned)
    except TypeError:
        return {}


def _bound(function: Callable[..., Any]) -> set[str]:
    """The names of the arguments that `functools.partial` has bound."""
    if not isinstance(function, functools.partial):
        return set()
    names = list(inspect.signature(function.func).parameters)
    return {*function.keywords, *names[: len(function.args)], *_bound(function.func)}


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
    for argument, own in schema["properties"].items():
        found = own.pop("$defs", {})
        taken = {name for name, one in found.items() if definitions.get(name, one) != one}
        for name in taken:
            # Another model has the name.
            text = json.dumps([own, found]).replace(f'"#/$defs/{name}"', f'"#/$defs/{argument}.{name}"')
            renamed, found = json.loads(text)
            own.clear()
            own.update(renamed)
            found[f"{argument}.{name}"] = found.pop(name)
        definitions.update(found)
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
