"""Energy of arithmetic: what one operation costs, by published table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class EnergyTable:
    """What one operation costs.

    Args:
        mac: pJ per multiply-accumulate, for real-valued input.
        ac: pJ per accumulate, for one synaptic operation.
        source: Where the numbers were published.
    """

    mac: float
    ac: float
    source: str


_HOROWITZ = "Horowitz, ISSCC 2014, Fig. 1.1.9: 45 nm, 0.9 V; arithmetic only, no memory access"

#: Energy per operation in pJ, by name.
ENERGY_TABLES: dict[str, EnergyTable] = {
    "horowitz_fp32": EnergyTable(mac=3.7 + 0.9, ac=0.9, source=_HOROWITZ),
    "horowitz_fp16": EnergyTable(mac=1.1 + 0.4, ac=0.4, source=_HOROWITZ),
    "horowitz_int32": EnergyTable(mac=3.1 + 0.1, ac=0.1, source=_HOROWITZ),
    "horowitz_int8": EnergyTable(mac=0.2 + 0.03, ac=0.03, source=_HOROWITZ),
}


def energy(sops: Number, macs: Number, table: str | EnergyTable = "horowitz_fp32") -> Number:
    r"""Energy of synaptic operations and multiply-accumulates.

    .. math:: E = 10^{-12} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    Args:
        sops: Synaptic operations, each one accumulate.
        macs: Multiply-accumulates: the effective ones for hardware that skips zeros, else the dense ones.
        table: A name in :data:`ENERGY_TABLES`, or a table of your own. Never add results of two tables.

    Returns:
        Energy in J.

    Raises:
        ValueError: If ``table`` is an unknown name.

    Example:
        >>> f"{energy(sops=1e6, macs=1e5):.3g} J"
        '1.36e-06 J'
    """
    entry = energy_table(table)
    return 1e-12 * (sops * entry.ac + macs * entry.mac)


def energy_table(table: str | EnergyTable) -> EnergyTable:
    """Look a table up by name; a table passes through."""
    if isinstance(table, EnergyTable):
        return table
    if table not in ENERGY_TABLES:
        raise ValueError(f"Expected argument `table` to be one of {sorted(ENERGY_TABLES)}, but got {table!r}.")
    return ENERGY_TABLES[table]
