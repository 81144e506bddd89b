"""What can go wrong."""

from __future__ import annotations

from typing import Any, Literal

Failure = Literal["failed", "blocked", "unknown"]


class CodeModeError(Exception):
    """The base of every error of this package but :class:`ToolError`."""


class StartError(CodeModeError):
    """The program ``code-mode`` was not found, or did not start."""


class HostLostError(CodeModeError):
    """The host's process ended, or was closed, while something still waited for it.

    Every call that was pending fails with it; the next session starts a new host.
    """


class RequestError(CodeModeError):
    """The host refused a request: a session that is closed, a limit, a wait for a cell that another
    wait observes."""


class ToolError(Exception):
    """Raised by a tool, it reaches the program as an Error with this message, and with ``code`` and
    ``data``. Any other exception reaches it with its message alone.

    ``failure`` says what became of the call: it ``failed``, somebody did not let it run (``blocked``),
    or it may have run (``unknown``).
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        data: Any = None,
        failure: Failure = "failed",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.data = data
        self.failure: Failure = failure
