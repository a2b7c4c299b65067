"""A form with one file, read piece by piece: nothing of it is kept here.

The framework's own reader writes to the disk whatever comes, without a limit.
"""

from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from magsd.model.errors import InvalidError

FIELD: Final = "file"
_FORM: Final = b"multipart/form-data"
_DISPOSITION: Final = b"content-disposition"
_HOW: Final = f"send a multipart form with the file in its field `{FIELD}`"


class FileForm:
    """The reader of one form. Raises `InvalidError` for what is no such form."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != _FORM or not options.get(b"boundary"):
            raise InvalidError(f"the body is not multipart/form-data: {_HOW}")
        self._file_name: str | None = None
        self._is_complete = False
        self._is_in_file = False
        self._header = self._value = b""
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_header,
                    "on_header_value": self._take_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._take_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidError(f"the body's Content-Type is not valid: {error}") from None

    def feed(self, data: bytes) -> list[bytes]:
        """Take some of the body; return what it holds of the file."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidError(f"the body is not a valid multipart form: {error}") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def file_name(self) -> str:
        """Return what the file is called, when the form has come to its end."""
        if not self._is_complete:
            raise InvalidError("the body ends in the middle of the multipart form")
        if self._file_name is None:
            raise InvalidError(f"the form has no file: {_HOW}")
        return self._file_name

    def _begin_part(self) -> None:
        self._is_in_file = False
        self._header = self._value = b""

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        header, value = self._header.lower(), self._value
        self._header = self._value = b""
        if header != _DISPOSITION:
            return
        _, options = parse_options_header(value.decode("latin-1"))
        if options.get(b"name") != FIELD.encode():
            return
        if self._file_name is not None:
            raise InvalidError("the form has several files: upload each by a request of its own")
        self._is_in_file = True
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_in_file:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._is_complete = True
