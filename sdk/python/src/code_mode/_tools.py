"""Functions as tools of programs."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import decimal
import enum
import inspect
import json
import pathlib
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Mapping, Union

from ._errors import ToolError
from ._results import Position
from ._schema import Signature, description_of, whole

#: A tool: a function, or a :class:`Tool` that says more of one.
ToolLike = Union["Tool", Callable[..., Any]]


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by a program."""

    #: The tool's name.
    name: str
    #: The input that the tool gets, as JSON: what the program passed, with the defaults of the
    #: function and of its types.
    input: Any
    #: The calling cell.
    cell_id: str
    #: The call's place in the cell: ``tool-1``, ...
    call_id: str
    #: The ``tool_call_id`` of the exec.
    tool_call_id: str
    #: Where in the program the call was made.
    site: Position | None = None
    #: The span of the call, as W3C Trace Context has it, where the exec named one.
    traceparent: str | None = None
    tracestate: str | None = None
    #: The tool's namespace, where it has one: with :attr:`name` it says which tool is meant.
    namespace: str | None = None
    #: 1, and one more each time that a durable session makes the call again after a restart.
    attempt: int = 1


@dataclass(frozen=True)
class ToolContext(ToolCall):
    """A call as its tool sees it: a parameter of this type gets it."""

    #: Set when nobody waits for the answer any more. A coroutine is cancelled then; a function that
    #: runs in a thread can only look here.
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


@dataclass(frozen=True)
class Tool:
    """A function as a tool, with what its hints and its docstring do not say."""

    function: Callable[..., Any]
    #: Default: the function's.
    name: str | None = None
    #: Default: the docstring, without the part on arguments.
    description: str | None = None
    #: JSON Schema of the input. Default: from the type hints. A function with a schema of its own
    #: gets the input as one argument.
    input_schema: Mapping[str, Any] | None = None
    #: JSON Schema of the result. Default: from the type hints.
    output_schema: Mapping[str, Any] | None = None
    #: A program also reaches it as ``tools.NAMESPACE.NAME``.
    namespace: str | None = None
    #: The text for the model leaves it out; programs find it by ``search_tools``.
    deferred: bool = False
    #: Nothing names it, and it can be called all the same.
    hidden: bool = False
    #: A second run does no harm: a durable session runs the tool again where nobody knows whether it
    #: ran before a restart. Other calls of that kind fail.
    idempotent: bool = False
    #: Whether ``approve`` is asked before a call. Default: it is, where the session has one.
    needs_approval: bool | Callable[[Any], bool | Awaitable[bool]] | None = None
    signature: Signature | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if self.input_schema is None:
            object.__setattr__(self, "signature", Signature(self.function, ToolContext))

    @property
    def own_name(self) -> str:
        """The name that programs use."""
        function = whole(self.function)
        return self.name or str(getattr(function, "__name__", type(function).__name__))

    def definition(self) -> dict[str, Any]:
        """The definition as the wire has it."""
        name, signature = self.own_name, self.signature
        output = self.output_schema
        if output is None and signature is not None:
            output = signature.output
        description = self.description
        return {
            "name": f"{self.namespace}__{name}" if self.namespace else name,
            "tool_name": {"name": name, "namespace": self.namespace},
            "description": description_of(whole(self.function)) if description is None else description,
            "input_schema": signature.schema if signature is not None else self.input_schema,
            "output_schema": output,
            "deferred": self.deferred,
            "hidden": self.hidden,
            "idempotent": self.idempotent,
        }

    def arguments(self, passed: Any) -> dict[str, Any] | None:
        """What the function gets for what a program passed; ``None`` where it gets that itself."""
        if self.signature is None:
            return None
        return self.signature.arguments({} if passed is None else passed)

    def bound(self, arguments: dict[str, Any] | None, context: ToolContext) -> Callable[[], Any]:
        """The call, ready to be made."""
        if self.signature is None or arguments is None:
            return lambda: self.function(context.input)
        if self.signature.context is not None:
            arguments = {**arguments, self.signature.context: context}
        return lambda: self.function(**arguments)

    @property
    def is_async(self) -> bool:
        """Whether the function runs on the event loop; others run in threads."""
        function = whole(self.function)
        call = getattr(function, "__call__", None)
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def tool_of(given: ToolLike) -> Tool:
    """The tool that a function, or a tool, is."""
    return given if isinstance(given, Tool) else Tool(given)


def image(data: bytes | str, mime_type: str) -> dict[str, Any]:
    """An image as the result of a tool; the program shows it with ``image(result)``."""
    return {"type": "image", "data": _base64(data), "mimeType": mime_type}


def audio(data: bytes | str, mime_type: str) -> dict[str, Any]:
    """A sound as the result of a tool; the program plays it with ``audio(result)``."""
    return {"type": "audio", "data": _base64(data), "mimeType": mime_type}


def _base64(data: bytes | str) -> str:
    return data if isinstance(data, str) else base64.b64encode(data).decode()


def _plain(value: Any) -> Any:
    """What the encoder of JSON does not know."""
    # Of the type, because some objects claim to have every attribute.
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        blob = base64.b64encode(bytes(value)).decode()
        mime = "application/octet-stream"
        return {"type": "resource", "resource": {"uri": "data:,", "mimeType": mime, "blob": blob}}
    said = getattr(type(value), "isoformat", None)
    if said is not None:
        return said(value)
    if isinstance(value, (uuid.UUID, decimal.Decimal, pathlib.PurePath)):
        return str(value)
    raise TypeError(f"the result has a {type(value).__name__}, which JSON cannot hold")


def encoded(value: Any) -> bytes:
    """A value as JSON, without what strict parsers refuse.

    Raises:
        ValueError, TypeError: it is not JSON.
    """
    try:
        text = json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return well_formed(text).encode()
    except (TypeError, ValueError):
        raise
    except Exception as error:
        # Too deep, or an object's own way to become JSON failed.
        raise ValueError(_message(error)) from error


def well_formed(text: str) -> str:
    """A text in which a replacement character takes the place of half a surrogate pair, which no
    encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shown(value: Any) -> Any:
    """A tool's input as JSON, for who decides about the call: every field as it is, and not as its
    type would write it out."""
    fields = getattr(type(value), "model_fields", None)
    if isinstance(fields, dict):
        extra = getattr(value, "__pydantic_extra__", None) or {}
        return {name: shown(getattr(value, name)) for name in fields} | shown(dict(extra))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: shown(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(shown(name)): shown(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [shown(one) for one in value]
    if isinstance(value, enum.Enum):
        return shown(value.value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    secret = getattr(type(value), "get_secret_value", None)
    if secret is not None:
        return shown(secret(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    said = getattr(type(value), "isoformat", None)
    return said(value) if said is not None else str(value)


def failed(error: BaseException) -> dict[str, Any]:
    """A failure as the wire has it."""
    told: dict[str, Any] = {"status": "error", "message": _message(error)}
    if isinstance(error, ToolError):
        is_number = isinstance(error.code, int) and not isinstance(error.code, bool)
        if is_number and error.code is not None and -(2**53) < error.code < 2**53:
            told["code"] = error.code
        if error.failure in ("blocked", "unknown"):
            told["failure"] = error.failure
        if error.data is not None:
            try:
                encoded(error.data)
                told["data"] = error.data
            except Exception:  # noqa: BLE001 - the message says enough
                pass
    return told


def _message(error: BaseException) -> str:
    """What an exception says, without what no text on a wire can hold."""
    name = type(error).__name__
    try:
        said = str(error) or name
    except Exception:  # noqa: BLE001 - an exception of another's
        return name
    if isinstance(error, (SystemExit, StopIteration, asyncio.CancelledError)):
        said = f"{name}: {said}" if said != name else name
    return well_formed(said)
