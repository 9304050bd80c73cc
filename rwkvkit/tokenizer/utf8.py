"""Text as the bytes that tokenizers read."""

from rwkvkit.errors import DataError

END_BYTE = b"\xff"
"""Ends a document in a buffer of many: no UTF-8 text holds it."""


def utf8(text: str) -> bytes:
    """Encode text as UTF-8.

    Raises:
        DataError: it holds a lone surrogate, which UTF-8 cannot express.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X} at character "
            f"{error.start}), which UTF-8 cannot express",
            hint="it is half of a character: repair or drop the text",
        ) from error
