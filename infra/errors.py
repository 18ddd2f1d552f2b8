"""The root of the errors whose message is written for the person at the terminal."""


class RwkvFusionError(Exception):
    """Something the user can act on: the message says what is wrong and what to do. Shown without a traceback."""
