"""Addresses of stores: told without their secrets, and with the driver that is here."""

import re
from importlib.util import find_spec
from urllib.parse import quote, quote_plus, unquote, unquote_plus

SECRET = re.compile(r"(?:pass\w*|pwd|secret|token|\w*key)=([^&;\s]+)", re.IGNORECASE)


def with_driver(address: str) -> str:
    """Name the driver that is here: SQLAlchemy 2.1 takes psycopg where none is named, older ones psycopg2."""
    plain = "postgresql://"
    if address.startswith(plain) and not find_spec("psycopg") and find_spec("psycopg2"):
        return address.replace(plain, "postgresql+psycopg2://", 1)
    return address


def without_login(address: str) -> str:
    """Give an address for messages: no user, no password, nothing after a '?'."""
    return re.sub(r"://[^/:@]*(?::.*)?@", "://", address, count=1).partition("?")[0]


def secrets_of(address: str, public: str) -> dict[str, str]:
    """List what may be in no text, each with what stands there instead, the longest first."""
    login = re.match(r"[^:]+://[^/:@]*:(.*)@", address)
    query = address.partition("?")[2]
    words = {login[1]} if login else set()
    words |= {*SECRET.findall(query), *SECRET.findall(unquote(query))}
    plain = {form(word) for word in words for form in (str, unquote, unquote_plus)} - {""}
    forms = {
        form(word) for word in plain for form in (str, quote, quote_plus, lambda w: quote(w, ""), _escaped)
    }
    # A word as common as the database's own name is hidden only where it stands as a password.
    hidden = {word: "***" for word in forms if len(word) > 3 and word not in public}
    hidden |= {
        f"{sign}{word}{end}": f"{sign}***{end}" for word in forms for sign, end in ((":", "@"), ("=", ""))
    }
    if address != public:
        hidden[address] = public
    return dict(sorted(hidden.items(), key=lambda item: -len(item[0])))


def _escaped(text: str) -> str:
    return repr(text)[1:-1]
