"""Makes text safe to be shown, logged and stored: without secrets, and without characters that control a terminal."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping

MASK = "***"
_QUESTION = "Is the server running"
_ADDRESS = re.compile(r"(?<![A-Za-z0-9+.\-])([A-Za-z0-9+.\-]+)://([^\s'\"<>`]*)")
_SECRET_NAMES = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY|API_KEY|PASSPHRASE|CREDENTIALS)", re.IGNORECASE)
"""Names of environment variables whose values are secrets."""
_PLACES = ("_PATH", "_FILE", "_DIR", "_FOLDER", "_CREDENTIALS")
"""Ends of names of variables whose values may be paths."""
# The patterns begin with the word itself and not with the whole name: otherwise, a long word without any secret would
# be searched from each of its letters.
_SETTING = re.compile(
    r"""((?:PASSWORD|PASSWD|SECRET|ACCESS_KEY|API_KEY|PASSPHRASE|CREDENTIALS)[\w\-]{0,40}(?:\s?=\s?|['"]\s?:\s?))"""
    r"""('[^']*'|"[^"]*"|[^\s,;&'"]+)""",
    re.IGNORECASE,
)
"""`password=...`, and `"password": "..."` in JSON."""
_TOKEN = re.compile(
    r"""(TOKEN\d{0,3}(?:\s?=\s?|['"]\s?:\s?))('[^']{6,}'|"[^"]{6,}"|[^\s,;&'"]{6,})""",
    re.IGNORECASE,
)
"""The same for `token`. A transformer has tokens, too: the word must end the name, and have a value as of a secret."""
_BEARER = re.compile(r"\b(Bearer|Basic)\s+([A-Za-z0-9+/=._~\-]{8,})", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+([\-/.][a-z]+)*\.?")
_ADDRESS_NAMES = ("VITSEARCH_DATABASE_URL", "VITSEARCH_TRACKING_URI", "MLFLOW_TRACKING_URI")
_SHORTEST = 6
"""Shorter values of variables are not looked for in texts, since they would be found in many places."""


def masked_address(address: str) -> str:
    """The scheme, host, port and path of an address. All else is masked, since it may be a secret.

    Of a text that is not an address, only a scheme is shown.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.\-]*", scheme):
        return MASK
    if rest.startswith("/"):  # a file: there is no user, and its name may contain @
        path, mark, _ = rest.partition("?")
        return f"{scheme}://{path}" + (f"?{MASK}" if mark else "")
    _, at, place = rest.rpartition("@")
    shown = re.split("[?#]", place, maxsplit=1)[0]
    return f"{scheme}://" + (f"{MASK}@" if at else "") + shown + (f"?{MASK}" if shown != place else "")


def reason_of(error: str) -> str:
    """The message of a database's driver on one line, without secrets and without libpq's question to the reader."""
    lines = (line.strip() for line in error.splitlines())
    return without_secrets(" ".join(" ".join(line for line in lines if not line.startswith(_QUESTION)).split()))


def without_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without passwords, tokens and keys.

    Masked are all parts of addresses except scheme, host, port and path (a web page keeps what follows `#/`); values of
    settings whose names speak of a secret, such as `password=...`; and wherever they appear, the values of environment
    variables with such names.

    Args:
        text: Any text.
        environment: The environment variables. Default: those of this process.
    """
    for secret, replacement in _known_secrets(os.environ if environment is None else environment):
        text = text.replace(secret, replacement)
    text = _ADDRESS.sub(_masked_in_text, text)
    for pattern in (_SETTING, _TOKEN):
        text = pattern.sub(lambda found: f"{found[1]}{MASK}", text)
    return _BEARER.sub(_masked_credential, text)


def printable(text: str, *, lines: bool = False) -> str:
    """The text with escapes such as `\\\\x1b` for characters that control a terminal, end a line or reverse text.

    Args:
        text: Any text.
        lines: Whether ends of lines stay.
    """
    if text.isprintable():
        return text
    return "".join(one if _is_harmless(one, lines=lines) else _escaped(one) for one in text)


class SafeFormatter(logging.Formatter):
    """Formats log records without secrets and control characters; a message is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in `logging`
        return without_secrets(printable(super().formatMessage(record)))

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802
        return without_secrets(printable(super().formatException(ei), lines=True))


def _masked_in_text(found: re.Match[str]) -> str:
    """An address in a text. The pages of MLflow have their own address after `#/`."""
    address, mark, page = found[0].partition("#/")
    if "@" in page:  # the mark is part of a password
        return masked_address(found[0])
    return masked_address(address) + mark + page


def _masked_credential(found: re.Match[str]) -> str:
    """The credential of a header `Authorization`. Words after `basic` in a sentence stay."""
    is_sentence = found[1].lower() == "basic" and _WORDS.fullmatch(found[2]) is not None
    return found[0] if is_sentence else f"{found[1]} {MASK}"


def _known_secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Texts to be replaced, and by what; those that may contain others come first."""
    return sorted(_secrets_in(environment), key=lambda pair: -len(pair[0]))


def _secrets_in(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in _ADDRESS_NAMES:
        value = environment.get(name, "")
        shown = masked_address(value)
        if value and MASK in shown:
            yield value, shown
            password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
            if len(password) >= _SHORTEST and password not in shown:  # such as the password `postgres`
                yield password, MASK
    for name, value in environment.items():
        is_place = value.startswith("/") and name.upper().endswith(_PLACES)
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST and not is_place:
            yield value, MASK


def _is_harmless(character: str, *, lines: bool) -> bool:
    if character == "\n":
        return lines
    return character in "\t " or character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
