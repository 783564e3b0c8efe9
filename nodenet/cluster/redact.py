"""Removes credentials from texts and API objects that leave the cluster. Pure.

A pattern can miss a secret that looks like any other word. So the first rule is not to read what holds secrets
(Secrets, tokens, kubeconfigs); this is the second one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"
_KEYWORD = (
    r"(?:pass(?:word|wd|phrase|(?![a-z]))|secret|token|credential|api[_-]?key|private[_-]?key|access[_-]?key|client[_-]?key"
    r"|auth(?:orization|(?![a-z]))|cookie|session[_-]?id|connection[_-]?string|dsn)"
)
# A lookahead is tried once for each word. With a repeat on both sides of the keyword, the time would grow with the
# square of the word's length.
_NAME = rf"(?=[\w.-]*?{_KEYWORD})[\w.-]++"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# Names with such a word that hold no secret.
_HARMLESS_NAME = re.compile(
    r"(?:automountServiceAccountToken|serviceAccountToken|secretName|secretKeyRef|imagePullSecrets|pullSecrets|tokenExpirationSeconds"
    r"|.*(?:File|Path|Ref|_FILE|_PATH|Seconds|certificate-authority))",
    re.IGNORECASE,
)
# Texts are hostile input: the time of each pattern grows with the length of the text, also for one long word. So a
# repeat starts at one place of a word only, and gives nothing back (`++`, `?>`).
_PATTERNS = (
    # Private keys, also with escaped line ends.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
    # JSON web tokens, which ServiceAccounts have.
    (re.compile(r"(?<![\w-])(?>([\w-]*?)\beyJ[\w-]{8})[\w-]*+\.[\w-]{8,}+\.[\w-]*+"), rf"\1{REDACTED}"),
    # The header of HTTP has two words: the kind, and the credential.
    (re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*[\"']?)(?:[a-z]+[ \t]+)?[^\s\"',}]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/=-]{8,}"), rf"\1\2{REDACTED}"),
    # Users and passwords in URLs.
    (re.compile(r"([\w+.-]://)[^\s/@\"']++@"), rf"\1{REDACTED}@"),
    # Keys of cloud providers and code hosts.
    (
        re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{30,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}"),
        REDACTED,
    ),
    # name=value, "name": "value", name: value.
    (re.compile(rf"(?i)(?<![\w.-])({_NAME})([\"']?\s*+[=:]\s*+)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'{{}}\[\]]+)"), None),
)


def text(data: str) -> str:
    """The text without what looks like a credential."""
    for pattern, put in _PATTERNS:
        data = pattern.sub(_pair if put is None else put, data)
    return data


def _pair(match: re.Match[str]) -> str:
    name, between, value = match[1], match[2], match[3]
    if _HARMLESS_NAME.fullmatch(name) or value.strip("\"'").lower() in (
        "",
        "true",
        "false",
        "null",
        "none",
        "0",
        REDACTED,
    ):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{between}{quote}{REDACTED}{quote}"


def obj(value: Any) -> Any:
    """A JSON value without credentials: values by their name, and texts by their content. Environment variables are
    redacted by the variable's name; copies of whole objects in annotations are left out."""
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str) and isinstance(value.get("value"), str) and is_secret(value["name"]):
            value = {**value, "value": REDACTED}
        return {key: _field(str(key), inner) for key, inner in value.items() if key not in _LEFT_OUT}
    if isinstance(value, list):
        return [obj(inner) for inner in value]
    return text(value) if isinstance(value, str) else value


# managedFields are long and tell nothing; the other one repeats the object, with its environment.
_LEFT_OUT = ("managedFields", "kubectl.kubernetes.io/last-applied-configuration")


def is_secret(name: str) -> bool:
    """Whether a value of this name is a credential."""
    return bool(_SECRET_NAME.fullmatch(name)) and not _HARMLESS_NAME.fullmatch(name)


def _field(key: str, value: Any) -> Any:
    if isinstance(value, str) and value and is_secret(key):
        return REDACTED
    return obj(value)
