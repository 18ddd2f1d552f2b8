"""The outcome of a job, told to whoever waits for it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.request import Request, urlopen

from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from rwkvfusion.infra.errors import redacted

ANSWER_SECONDS = 10.0
_TRIES = 3


def post(url: str, facts: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Send `facts` as a JSON object by POST, three times at most; whether it was taken. A failure is told to `say`."""
    body = redacted(json.dumps(facts)).encode()
    request = Request(url, body, {"Content-Type": "application/json"}, method="POST")
    patient = Retrying(
        retry=retry_if_exception_type(OSError), stop=stop_after_attempt(_TRIES), wait=wait_exponential(max=4)
    )
    try:
        for attempt in patient:
            with attempt, urlopen(request, timeout=ANSWER_SECONDS):
                pass
    except RetryError as error:
        # The URL is often a secret.
        say(f"warning: the webhook did not take the outcome: {redacted(str(error.last_attempt.exception()))}")
        return False
    return True
