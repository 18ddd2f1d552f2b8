"""The root of the errors whose message is written for the person at the terminal."""

from rwkvfusion.infra.secrets import redacted


class RwkvFusionError(Exception):
    """Something the user can act on: the message says what is wrong and what to do. Shown without a traceback.

    Credentials are taken out of the message, wherever it came from.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


def printable(text: str) -> str:
    """`text` for a terminal: what it would obey or hide (escapes, line ends, marks of direction) is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
