"""Where secrets may travel to."""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit


def check_address(what: str, url: str, ca: Path | None, insecure: bool) -> bool:
    """Whether the machine at an address, `what` it is in the user's words, is this one.

    Raises:
        ValueError: it is no address, secrets would travel to it for all to read, or there are no such certificates.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{what} '{url}': must be such as http://127.0.0.1:5050 or https://server.example:5050")
    local = is_loopback(parts.hostname)
    if parts.scheme == "http" and not (local or insecure):
        raise ValueError(
            f"{what} '{url}': tokens and parameters could be read on the way; use https, or --insecure on a network "
            "where nobody listens"
        )
    if ca is not None and not ca.is_file():
        raise ValueError(f"ca {ca}: no such file; must hold the certificates to trust, as PEM")
    return local


def is_address(host: str) -> bool:
    """Whether it is numbers, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether that address or name can only be this machine."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
