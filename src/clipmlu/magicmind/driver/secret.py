"""Reads the shared secret."""

from __future__ import annotations

import os

from .errors import GreetingError
from .files import open_regular

SECRET_VARIABLE = "CLIPMLU_WORKER_SECRET"  # noqa: S105 - the name of the variable
MIN_SECRET = 16
MAX_SECRET = 1 << 12


def read_secret(path: str | None) -> bytes | None:
    """Read the shared secret from a file or from the environment; None if neither is given.

    Raises:
        GreetingError: the file cannot be read, is readable by everyone, or has no secret.
    """
    if path:
        where = f"secret file '{path}'"
        secret = _secret_in(path, where).strip()
        if not secret:
            raise GreetingError(f"{where} is empty; expected a secret of {MIN_SECRET} or more characters")
    else:
        where = f"variable {SECRET_VARIABLE}"
        secret = os.fsencode(os.environ.get(SECRET_VARIABLE, "")).strip()
    if secret and len(secret) < MIN_SECRET:
        raise GreetingError(f"the secret has {len(secret)} characters; expected {MIN_SECRET} or more ({where})")
    return secret or None


def _secret_in(path: str, where: str) -> bytes:
    try:
        with open_regular(os.path.realpath(path)) as stream:
            if os.name == "posix" and os.fstat(stream.fileno()).st_mode & 0o007:
                raise GreetingError(f"{where} is open to every user of this machine; run: chmod 600 {path}")
            secret: bytes = stream.read(MAX_SECRET + 1)
    except (OSError, ValueError) as error:
        raise GreetingError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(secret) > MAX_SECRET:
        raise GreetingError(f"{where} is longer than {MAX_SECRET} bytes; expected a secret")
    return secret
