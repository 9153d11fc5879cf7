"""``clipmlu serve``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipmlu.cli._groups import Option, OptionGroup
from clipmlu.cli._help import command
from clipmlu.cli._notes import note
from clipmlu.cli._options import PATH, Integer, Number, RunningOptions, running_options, templates_option
from clipmlu.cli._urls import url_options
from clipmlu.errors import OptionError

if TYPE_CHECKING:
    from clipmlu.data.url.options import UrlOptions

_CLASSES = (
    Option("--labels", metavar="FILE|LIST", help="Classes of requests that give none: a file, or a list: 'cat,dog'."),
    Option("--classifier", type=PATH, help="A classifier file instead of --labels."),
    templates_option,
    Option(
        "--top-k", type=Integer(min=1), default=5, show_default=True, help="Classes per image, unless a request says."
    ),
    Option("--reject-below", type=Number(0, 1), metavar="P", help="For --labels: as for 'clipmlu classify'."),
    Option("--none-label", metavar="NAME", help="For --labels: as for 'clipmlu classify'."),
    Option("--background", metavar="FILE|LIST", help="For --labels: as for 'clipmlu classify'."),
    Option("--index", type=PATH, metavar="DIR", help="Index that /v1/search searches."),
)
_HTTP = (
    Option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on."),
    Option("--port", type=Integer(0, 65535), default=8000, show_default=True, help="Port; 0 for any free one."),
    Option(
        "--api-key-file",
        type=PATH,
        metavar="FILE",
        help="File with the key that requests need; or CLIPMLU_API_KEY. Needed if --host is not the loopback.",
    ),
    Option("--allow-host", multiple=True, metavar="NAME", help="Name of this server in requests; may be repeated."),
    Option(
        "--allow-origin",
        multiple=True,
        metavar="ORIGIN",
        help="Other web page that may ask, such as https://example.org.",
    ),
    Option("--max-connections", type=Integer(min=1), default=512, show_default=True, help="Connections at a time."),
)
_LIMITS = (
    Option("--max-queue", type=Integer(min=1), default=256, show_default=True, help="Images that may wait at a time."),
    Option("--max-images", type=Integer(min=1), default=64, show_default=True, help="Images of one request."),
    Option(
        "--max-texts",
        type=Integer(min=1),
        default=1024,
        show_default=True,
        help="Texts, or labels x templates, of one request.",
    ),
    Option("--max-body", type=Integer(min=1), default=64 << 20, show_default=True, help="Bytes of one request."),
    Option(
        "--timeout-s",
        "--timeout",
        "timeout_s",
        type=Number(0, 86400, min_open=True),
        default=30,
        show_default=True,
        help="Seconds from a request to its answer.",
    ),
    Option(
        "--stop-timeout-s",
        "--stop-timeout",
        "stop_timeout_s",
        type=Number(0, 86400, min_open=True),
        default=30,
        show_default=True,
        help="Seconds to finish requests when the server is stopped.",
    ),
)


def _group(parameter: str, options: tuple[Option, ...], heading: str | None) -> OptionGroup[dict[str, Any]]:
    def values(given: Mapping[str, Any]) -> dict[str, Any]:
        return {option.name: given[option.name] for option in options}

    return OptionGroup(parameter, options, values, heading=heading)


@command(
    "serve",
    short_help="Serve bundles over HTTP.",
    examples=(
        'clipmlu serve demo-cpu --labels "red circle,blue square"',
        "clipmlu serve b32-cpu mine=other-cpu --port 9000",
    ),
)
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@_group("classes", _CLASSES, None)
@_group("http", _HTTP, "HTTP")
@_group("limits", _LIMITS, "Limits")
@url_options
@running_options
def serve_command(
    bundles: tuple[str, ...],
    classes: dict[str, Any],
    http: dict[str, Any],
    limits: dict[str, Any],
    urls: UrlOptions | None,
    running: RunningOptions,
) -> int:
    """Serve compiled bundles over HTTP until Ctrl-C or SIGTERM.

    A BUNDLE is a folder, whose name requests use; NAME=BUNDLE gives it another name. The log has a line of JSON for each
    request on stderr. When the server is stopped, it finishes the requests that it took.
    """
    from clipmlu.api.serving import run_server

    if classes["labels"] is None:
        classes["templates"] = None
    run_server(
        _named(bundles),
        on_listen=lambda url: note(f"Serving on {url}"),
        write_log=_write_log,
        **_url_keywords(urls),
        **classes,
        **http,
        **limits,
        **dataclasses.asdict(running),
    )
    return 0


def _url_keywords(urls: UrlOptions | None) -> dict[str, Any]:
    if urls is None:
        return {}
    limits = {"url_timeout": urls.timeout_s, "url_max_bytes": urls.max_bytes}
    return {"allow_urls": True, "allow_private_urls": urls.allow_private, **limits}


def _write_log(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def _named(bundles: Sequence[str]) -> dict[str, Path]:
    """Return bundles by their names.

    Raises:
        OptionError: two have the same name, or one has an empty name.
    """
    named: dict[str, Path] = {}
    for given in bundles:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = Path(given).resolve().name, given
        if not name or name in named:
            what = f"the name '{name}' is that of another bundle" if name else "the name is empty"
            raise OptionError(f"bundle '{given}': {what}; give each a name of its own: NAME=BUNDLE")
        named[name] = Path(path)
    return named
