"""Which peers are held in memory together; every group has the common ones, so that all can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def plan_groups(
    memory: Mapping[str, float], common: Sequence[str], budget: float
) -> tuple[list[list[str]], dict[str, str]]:
    """Fills groups one after another.

    Args:
        memory: what each peer occupies (GiB), in the order in which they are taken.
        common: peers that every group has.
        budget: what a group may occupy.

    Returns:
        The groups, each beginning with the common peers; and the peers that no group can hold, with the reason. There
        is one group at least, unless the common peers themselves do not fit.
    """
    common = [name for name in common if name in memory]
    base = sum(memory[name] for name in common)
    if base > budget:
        reason = f"{', '.join(common)} need about {base:.1f} GiB and {budget:.1f} GiB are free"
        return [], {name: reason for name in memory}
    groups: list[list[str]] = [[]]
    room = [budget - base]
    refused: dict[str, str] = {}
    for name, needed in memory.items():
        if name in common:
            continue
        if base + needed > budget:
            refused[name] = f"it needs about {needed:.1f} GiB beside {base:.1f} GiB, and {budget:.1f} GiB are free"
            continue
        fitting = next((index for index, left in enumerate(room) if left >= needed), None)
        if fitting is None:
            groups.append([])
            room.append(budget - base)
            fitting = len(groups) - 1
        groups[fitting].append(name)
        room[fitting] -= needed
    return [[*common, *group] for group in groups], refused
