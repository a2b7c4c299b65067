"""The one exception of this package."""


class MagsError(Exception):
    """A request was refused, or could not be made.

    The text is the server's own message, or says why the server could not be reached.
    """

    def __init__(
        self, message: str, status_code: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        """HTTP status of the refusal; None when there was no answer."""
        self.code = code
        """A reason for programs: the server's, such as `not_found`; `unauthorized` also
        where no token is configured; `unreachable` when no answer came."""
