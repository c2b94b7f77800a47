"""The port of a server."""

import errno
import socket

from vlatrack.errors import ServingError


def open_port(host: str, port: int) -> socket.socket:
    """A socket that has the port, taken before anything that takes long; clients are refused until it is listened on.

    Args:
        port: 0: one that is free.

    Raises:
        ServingError: it is in use, or may not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServingError(f"--host {host} --port {port}: no address to listen on ({error})") from error
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise refused_port(error, host, port) from error
    return opened


def refused_port(error: OSError, host: str, port: int) -> ServingError:
    """Why a port cannot be listened on."""
    match error.errno:
        case errno.EADDRINUSE:
            return ServingError(f"--port {port}: is in use on {host}; choose another one, or 0 for any that is free")
        case errno.EACCES:
            return ServingError(f"--port {port}: {error.strerror}; choose one above 1023")
    return ServingError(f"--host {host}: cannot listen there ({error.strerror})")
