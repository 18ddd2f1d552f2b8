"""Credentials stay out of what is shown or written down."""

from __future__ import annotations

import os
import re

_USERINFO = re.compile(r"([a-zA-Z][\w+.-]*://)([^\s/@:]*):([^\s/@]+)@")
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|CREDENTIAL")
_LEAST = 8
"""Shorter values are words that would be found everywhere."""


def redacted(text: str) -> str:
    """`text` without passwords in URLs, and without what the environment holds under names such as `*_SECRET_*`."""
    text = _USERINFO.sub(r"\1\2:***@", text)
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= _LEAST and not os.path.exists(value):
            text = text.replace(value, "***")
    return text
