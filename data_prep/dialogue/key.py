"""The key of an endpoint: where it comes from, what may carry it, and how it stays out of everything else."""

import ipaddress
import json
import os
import re
from urllib.parse import quote, urlsplit

SHORTEST_SECRET = 8  # characters; "EMPTY", as local servers are given, is none
ESCAPE = re.compile(r"\\u00([2-7][0-9A-Fa-f])")  # of a printable ASCII character in JSON
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # no small letters: a key put here by mistake mostly has some


class Key:
    """The key of an endpoint, which shows itself in the request's header alone.

    Args:
        value: the key; None for an endpoint that needs none.
        variable: name of the environment variable it came from.
    """

    def __init__(self, value: str | None, variable: str | None) -> None:
        self._value, self._variable = value, variable

    def __repr__(self) -> str:
        return "[KEY]"

    def headers(self, api: str) -> dict[str, str]:
        """Returns the header that carries the key."""
        if self._value is None:
            return {}
        if api == "gemini":
            return {"x-goog-api-key": self._value}
        return {"authorization": f"Bearer {self._value}"}

    def hide(self, text: str) -> str:
        """Returns a text of the endpoint with `[KEY]` wherever it holds the key."""
        if self._value is None or len(self._value) < SHORTEST_SECRET:
            return text
        forms = {self._value, quote(self._value, safe=""), json.dumps(self._value)[1:-1]}
        forms.add(self._value.replace("/", r"\/"))
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "[KEY]")
        plain = ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
        return plain.replace(self._value, "[KEY]") if self._value in plain else text

    def advice(self) -> str:
        """Returns what to change when the endpoint refuses the key."""
        if self._value is None:
            return "a key is expected; put it into an environment variable and name that in api_key_env"
        return f"a key it accepts is expected; put another one into the environment variable {self._variable}"


def address_problems(base_url: str, has_key: bool) -> list[str]:
    """Returns what is wrong with an endpoint's address; its secret parts are not repeated."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return [f"base_url: is no address ({error}); write it as https://HOST/v1"]
    if parts.username is not None or parts.query or parts.fragment:
        return ["base_url: holds a user, a ? or a #; keys go into an environment variable; name it in api_key_env"]
    if parts.scheme not in ("http", "https") or not host:
        return [f"base_url: {base_url!r} is no http(s) address; write it as https://HOST/v1"]
    if parts.scheme == "http" and has_key and not is_loopback(base_url):
        return [
            f"base_url: {base_url} would send the key unencrypted over the network; https, or a loopback host, "
            "is expected; use https, a tunnel to localhost, or api_key_env=null if the server needs no key"
        ]
    return []


def is_loopback(base_url: str) -> bool:
    """Whether an address stays on this machine."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_problems(variable: str | None, base_url: str) -> list[str]:
    """Returns what is wrong with the key's variable or its value; neither is repeated where it may be secret."""
    if variable is None:
        return []
    if not VARIABLE.fullmatch(variable):
        return [
            "api_key_env: is no name of an environment variable in capitals (its value is not shown, as it may be a "
            "key); a name such as GEMINI_API_KEY is expected; export the key under such a name"
        ]
    value = os.environ.get(variable, "").strip()
    if not value:
        return [
            f"api_key_env: the environment variable {variable} is not set; the endpoint's key is expected there; "
            "export it, or use api_key_env=null if the server needs none"
        ]
    if not (value.isascii() and value.isprintable()) or " " in value:
        return [f"api_key_env: the value of {variable} has a space or other characters no key has; export it anew"]
    if len(value) < SHORTEST_SECRET and not is_loopback(base_url):
        return [
            f"api_key_env: the value of {variable} has {len(value)} characters; at least {SHORTEST_SECRET} are "
            "expected, as a shorter one cannot be kept out of the files; export the whole key"
        ]
    return []


def read_key(variable: str | None) -> Key:
    """Returns the key that the environment variable holds."""
    return Key(os.environ[variable].strip() if variable else None, variable)
