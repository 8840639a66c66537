"""Which certificates are believed."""

import ssl
from functools import cache

import httpx


@cache
def tls_context() -> ssl.SSLContext:
    """httpx's own, read once: that takes 25 ms, and a back end may have a client for each of its users."""
    return httpx.create_ssl_context()
