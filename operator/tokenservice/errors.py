"""Everything that this package raises on purpose.

    TokenServiceError
    ├── ConfigurationError    the administrator's settings cannot be used; says which and how to mend them
    ├── InputError            a file given to a command cannot be used; says which line and field, and how to mend it
    ├── LeaseLost             another process leads, or may by now: stop writing
    └── ApiError              the API server, or the way to it, said no
        ├── Conflict          409: someone else wrote first, or owns the field
        │   └── Taken         the name belongs to an object of somebody else, and will until they remove it
        ├── NotFound          404; 403 when the namespace is being deleted
        ├── Gone              410: the revision to continue from is compacted, list again
        ├── Forbidden         401, 403
        ├── Invalid           400, 413, 415, 422: the request is wrong and will stay wrong
        └── Retryable         429, 5xx, timeouts, broken connections; `after` seconds

What users get wrong is not an error: the core returns it as a `Problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cause(error: Exception) -> str:
    """Why something cannot be read or written, without the number and the path that the system adds."""
    return str(getattr(error, "strerror", None) or error)


class TokenServiceError(Exception):
    """Base of all."""


class ConfigurationError(TokenServiceError):
    """The settings cannot be used."""


class InputError(TokenServiceError):
    """A file cannot be used; one `file:line: field: message` a line."""


class LeaseLost(TokenServiceError):  # noqa: N818 - says what happened, as its siblings do
    """This process leads no more."""


class ApiError(TokenServiceError):
    """An answer of the API server that is not a success; `status` is 0 when there was no answer."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", details: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason or type(self).__name__
        self.details: Mapping[str, Any] = details or {}


class Conflict(ApiError):  # noqa: N818
    """Someone else wrote first, the object exists already, or another manager owns a field."""


class Taken(Conflict):
    """An object of somebody else has the name."""


class NotFound(ApiError):  # noqa: N818
    """There is no such object or kind."""


class Gone(ApiError):  # noqa: N818
    """The revision is compacted."""


class Forbidden(ApiError):  # noqa: N818
    """Credentials or rights are missing."""


class Invalid(ApiError):  # noqa: N818
    """The request is wrong and will stay wrong."""


class Retryable(ApiError):  # noqa: N818
    """Worth another try; `after` is how many seconds the API server asks for, 0 where it asks for none."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        after: float = 0.0,
    ):
        super().__init__(message, status=status, reason=reason, details=details)
        self.after = after
