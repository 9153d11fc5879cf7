"""Selections of operators by role and block, such as ``mlp_out:0-2,11``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable

from clipmlu.errors import OptionError, did_you_mean
from clipmlu.graph.roles import ROLES, Operator, Role

_SELECTION_HINT = "expected ROLE or ROLE:BLOCKS, such as mlp_out or mlp_out:0-2,11"
_BLOCK_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Operators of one role.

    Attributes:
        role: their role.
        blocks: numbers of their blocks; None selects all, including those outside the blocks.
        optional: a model without such operators is no error.
    """

    role: Role
    blocks: frozenset[int] | None = None
    optional: bool = False

    def __str__(self) -> str:
        return self.role if self.blocks is None else f"{self.role}:{_listed(self.blocks)}"

    def matches(self, operator: Operator) -> bool:
        """Return whether the selection includes an operator."""
        return operator.role == self.role and (self.blocks is None or operator.block in self.blocks)


def parse_selection(text: str) -> Selection:
    """Parse ``ROLE`` or ``ROLE:BLOCKS``, such as ``mlp_out:0-2,11``; ``-`` in a role means ``_``.

    A ``?`` at the end makes the selection optional.

    Raises:
        OptionError: there is no such role, or the blocks are not a list of numbers.
    """
    required = text.strip().removesuffix("?")
    optional = required != text.strip()
    name, colon, blocks = required.partition(":")
    wanted = name.strip().lower().replace("-", "_")
    for role in ROLES:
        if role == wanted:
            numbers = _parse_blocks(text, blocks) if colon else None
            return Selection(role=role, blocks=numbers, optional=optional)
    meant = f" {did_you_mean(wanted, ROLES)}".rstrip()
    raise OptionError(
        f"operators are '{text}'; unknown role '{name.strip()}', expected one of {', '.join(ROLES)}; {_SELECTION_HINT}.{meant}"
    )


def select_operators(operators: Iterable[Operator], selections: Collection[Selection]) -> list[str]:
    """Return the names of the nodes that match any selection, in the order of the graph."""
    return [each.node for each in operators if any(selection.matches(each) for selection in selections)]


def check_selections(operators: Iterable[Operator], selections: Iterable[Selection]) -> None:
    """Check that each selection that is not optional matches an operator in at least one tower.

    Args:
        operators: the operators of all towers.
        selections: the selections to check.

    Raises:
        OptionError: a selection matches no operator; the message lists the available ones.
    """
    present = list(operators)
    for selection in selections:
        if not selection.optional and not any(map(selection.matches, present)):
            raise OptionError(f"operators are '{selection}', but this model has none; it has {_inventory(present)}")


def _parse_blocks(text: str, blocks: str) -> frozenset[int]:
    numbers: set[int] = set()
    for part in blocks.split(","):
        match = _BLOCK_RANGE.fullmatch(part.strip())
        if match is None:
            raise OptionError(f"operators are '{text}'; {_SELECTION_HINT}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise OptionError(f"operators are '{text}'; the blocks {part.strip()} run backwards; {_SELECTION_HINT}")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def _listed(numbers: Iterable[int]) -> str:
    """Return ``0-2,11`` for 0, 1, 2 and 11."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _inventory(operators: list[Operator]) -> str:
    """Return all possible selections as text."""
    found = []
    for role in ROLES:
        blocks = {operator.block for operator in operators if operator.role == role}
        numbers = [block for block in blocks if block is not None]
        if numbers:
            found.append(f"{role}:{_listed(numbers)}" + (" (and outside the blocks)" if None in blocks else ""))
        elif blocks:
            found.append(role)
    return ", ".join(found) or "none that can be quantised"
