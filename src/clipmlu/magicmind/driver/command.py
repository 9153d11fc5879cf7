"""The command line of the worker.

    python3.7 clipmlu_worker.pyz --info                          describe this machine, as JSON
    python3.7 clipmlu_worker.pyz --serve unix:/shared/mlu.sock   a Unix socket; each connection gets its own process
    python3.7 clipmlu_worker.pyz --serve tcp:10.0.0.5:9310       the same over TCP; needs a shared secret

The secret comes from the file given with --secret-file or from CLIPMLU_WORKER_SECRET, never from the command line. Both
sides prove that they know it (HMAC-SHA256 over fresh nonces); it is not sent. Later data are not encrypted: use TCP in
a trusted network or through a tunnel. Clients can read files in the folders given with --root, or in the working
directory, but not the secret, and no file with several hard links, because another link may be outside. A client can
write only into a folder of its connection, which is removed at the end. A client gets one of the --max-clients places
after the proof. The place is free again when the client ends, when its host does not answer for 90 seconds (TCP), or
after --idle-seconds without a request; an idle client connects again with its next request.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence

from .address import parse_address
from .errors import GreetingError
from .files import FileAccess
from .log import log_line
from .processes import die_with_parent
from .request import Request
from .secret import SECRET_VARIABLE, read_secret
from .server import Server
from .service import Service
from .serving import serve_descriptor

IDLE_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; ``sys.argv[0]`` is the file of the program."""
    options = _parser().parse_args(arguments)
    try:
        with open(sys.argv[0], "rb") as stream:
            program = stream.read()
        return _run(options, program)
    except (GreetingError, OSError) as error:
        log_line(str(error))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="clipmlu worker: runs MagicMind models for another process.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--serve", metavar="ADDRESS", help="unix:PATH or tcp:HOST:PORT; the host is always named")
    what.add_argument("--info", action="store_true", help="print what is found here as JSON")
    parser.add_argument(
        "--secret-file",
        metavar="FILE",
        help=f"file with the shared secret, readable by its owner only; default: the variable {SECRET_VARIABLE}",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        action="append",
        help="a folder whose files clients may have read; may be given again (default: the working directory, unless that "
        "is /); files that they send go elsewhere and need none",
    )
    parser.add_argument("--socket-mode", default="600", help="permissions of a Unix socket, octal (default: 600)")
    parser.add_argument("--max-clients", type=int, default=8, help="clients at a time that are served (default: 8)")
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_SECONDS,
        help="give back the place and the card of a client that asks for nothing for so long; it gets both again with its "
        f"next request (default: {IDLE_SECONDS:g}; 0: never)",
    )
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--hidden", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--greeted", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, program: bytes) -> int:
    digest = hashlib.sha256(program).hexdigest()
    if options.info:
        service = Service()
        facts, _none = service.answer(Request({"op": "info"}))
        print(json.dumps({**facts, "driver": digest}, indent=2))
        service.close()
        return 0
    kind, where = parse_address(options.serve, least_port=0)
    if kind == "fd":
        die_with_parent()
        faulthandler.enable()
        file_access = FileAccess(options.root or [], options.hidden) if options.greeted else FileAccess()
        service = Service(scratch=options.scratch, file_access=file_access)
        serve_descriptor(where, service, digest=digest, greeted=options.greeted, idle_seconds=options.idle_seconds)
        return 0
    _check_options(options)
    server = Server(
        options.serve,
        program,
        read_secret(options.secret_file),
        socket_mode=int(options.socket_mode, 8),
        max_clients=options.max_clients,
        idle_seconds=options.idle_seconds,
        roots=_roots(options.root),
        hidden=[os.path.abspath(path) for path in (options.secret_file, sys.argv[0]) if path],
    )
    server.run()
    return 0


def _check_options(options: argparse.Namespace) -> None:
    if options.max_clients < 1:
        raise GreetingError(f"--max-clients is {options.max_clients}; expected 1 or more")
    if not 0 <= options.idle_seconds < float("inf"):
        raise GreetingError(f"--idle-seconds is {options.idle_seconds:g}; expected 0 (never) or more")
    if not re.match(r"[0-7]{1,4}\Z", options.socket_mode):
        raise GreetingError(f"--socket-mode is '{options.socket_mode}'; expected an octal number such as 600")


def _roots(given: Sequence[str] | None) -> list[str]:
    """Return the folders whose files clients can read."""
    if given is None:
        return [here for here in [os.path.realpath(os.getcwd())] if here != "/"]
    for root in given:
        if not root or not os.path.isdir(root):
            raise GreetingError(f"--root '{root}' is no folder")
    return [os.path.realpath(root) for root in given]
