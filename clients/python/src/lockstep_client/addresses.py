"""Where a server's REST and its WebSocket are."""

from urllib.parse import urlsplit, urlunsplit

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def rest_url(url: str) -> str:
    """Where `/v1/...` is to be appended. `url` is the server's address, with or without a path.

    Raises ValueError on what is no address: it begins with http://, https://, ws:// or wss://.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"{url!r} is no server's address: it begins with http:// or https://")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def socket_url(url: str) -> str:
    """The WebSocket of the server at this address. Raises ValueError like `rest_url`."""
    return rest_url(url).replace("http", "ws", 1) + "/ws"
