"""Option groups: one value from several options, in commands with and without the other options that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner

from clipmlu.cli._groups import Option, OptionGroup

LIMIT = Option("--limit", type=int, default=7)
SIZES = OptionGroup(
    "size",
    (Option("--width", type=int, default=1), Option("--height", "tall", type=int, default=2)),
    lambda given: (given["width"], given["tall"], given["limit"]),
    reads=("limit",),
)
OTHER = OptionGroup("other", (Option("--name", default="x"), LIMIT), lambda given: f"{given['name']}{given['limit']}")


def _result(function: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(click.command()(function), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(found)


found: dict[str, Any] = {}


def test_a_command_gets_the_value_in_place_of_the_options() -> None:
    @SIZES
    @LIMIT
    def command(**given: Any) -> None:
        found.clear()
        found.update(given)

    assert _result(command, "--height", "5", "--limit", "9") == {"size": (1, 5, 9)}


def test_two_groups_may_read_one_option_and_a_command_that_names_it_gets_it_too() -> None:
    @SIZES
    @OTHER
    def command(size: object, other: object, limit: int) -> None:
        found.clear()
        found.update(size=size, other=other, limit=limit)

    assert _result(command, "--limit", "3", "--name", "n") == {"size": (1, 2, 3), "other": "n3", "limit": 3}


def test_an_option_that_nothing_takes_is_a_mistake_of_the_command() -> None:
    @SIZES
    @LIMIT
    @click.option("--forgotten")
    def command(size: object) -> None:
        """Takes the value only."""

    with pytest.raises(TypeError, match="forgotten"):
        _result(command)


def test_options_stand_in_the_help_in_the_order_of_the_group() -> None:
    @SIZES
    @LIMIT
    def command(**given: Any) -> None:
        """Takes anything."""

    text = CliRunner().invoke(click.command()(command), ["--help"]).output
    assert [word for word in text.split() if word.startswith("--")] == ["--width", "--height", "--limit", "--help"]
