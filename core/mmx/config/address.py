"""Addresses of stores, told without their secrets."""

from urllib.parse import urlsplit


def without_login(address: str) -> str:
    """Give an address without its user and password."""
    parts = urlsplit(address)
    return (
        address if "@" not in parts.netloc else address.replace(parts.netloc, parts.netloc.rpartition("@")[2])
    )
