"""The end of what a program said, safe to show."""

from __future__ import annotations

import re

LOG_BYTES = 4000
LOG_LINES = 10

_KEYS = r"[\w.-]*(?:passw|passwd|pwd|secret|token|api_?key|app_?key|private_?key|credential|authorization)[\w.-]*"
_SECRETS = [
    # an Authorization header: all of the line
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*)[^\n]+"), r"\1***"),
    # token=..., "password": "...", SECRET: ...
    (re.compile(rf"(?i)([\"']?{_KEYS}[\"']?\s*(?:=>|[:=])\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&}}]+)"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    # scheme://user:password@host
    (re.compile(r"(://[^\s:/@]*:)[^\s/]+@"), r"\1***@"),
    # anything long that mixes letters and figures; a UUID has 36 characters and stays
    (re.compile(r"(?=[A-Za-z_=+-]*\d)(?=[\d_=+-]*[A-Za-z])[A-Za-z0-9_=+-]{38,}"), "***"),
]
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def redact(text: str) -> str:
    """Text without what looks like a password, a token or a terminal's colour."""
    text = _CONTROL.sub("", text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def last_lines(text: str) -> str:
    """The end of a text, safe to show."""
    return "\n".join(line.rstrip() for line in redact(text).strip().splitlines()[-LOG_LINES:])
