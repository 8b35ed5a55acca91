"""Energy of arithmetic: what one operation costs, by published table."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from snnreg_plugins._checks import as_integer, as_number, shown
from snnreg_plugins._files import read_yaml

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class EnergyTable:
    """What one operation costs.

    Args:
        mac: pJ per multiply-accumulate, for real-valued input; nan where none is published, as for chips that
            only know spikes.
        ac: pJ per accumulate, for one synaptic operation.
        source: Where the numbers were published.

    Raises:
        ValueError: If ``ac`` or ``mac`` is no number of at least 0, or ``source`` is empty.
    """

    mac: float
    ac: float
    source: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "ac", as_number("ac", self.ac, "[0, inf)"))
        if not (isinstance(self.mac, float) and math.isnan(self.mac)):
            object.__setattr__(self, "mac", as_number("mac", self.mac, "[0, inf)"))
        if not isinstance(self.source, str) or not self.source.strip():
            raise ValueError(
                f"Expected argument `source` to say where the numbers were published, but got {self.source!r}."
            )

    @property
    def prices_macs(self) -> bool:
        """Whether the table has a price for MACs."""
        return not math.isnan(self.mac)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], argument: str = "path") -> EnergyTable:
        r"""Read a table of your own from a YAML file with ``ac``, ``source`` and, if there is a price for it, ``mac``.

        .. code-block:: yaml

            ac: 0.9
            mac: 4.6
            source: my chip, datasheet of 2024, Table 3

        Args:
            path: The file; nothing in it is run.
            argument: The argument that named it, for errors.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds anything else.

        Example:
            >>> import tempfile
            >>> file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
            >>> _ = file.write("ac: 2.5\nsource: my chip") and file.flush()
            >>> table = EnergyTable.from_yaml(file.name)
            >>> table.ac, table.prices_macs, table.source
            (2.5, False, 'my chip')
        """
        content = read_yaml(path, argument)
        try:
            if not isinstance(content, dict) or not {"ac", "source"} <= content.keys() <= {"ac", "mac", "source"}:
                found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
                raise ValueError(f"Expected the keys `ac`, `source` and perhaps `mac`, but got {found}.")
            mac = content.get("mac")
            return cls(math.nan if mac is None else mac, content["ac"], content["source"])
        except ValueError as error:
            raise ValueError(
                f"Expected argument `{argument}` to name an energy table, but {os.fspath(path)!r} is none: {error}"
            ) from error


_HOROWITZ = "Horowitz, ISSCC 2014, Fig. 1.1.9: 45 nm, 0.9 V; arithmetic only, no memory access"
_SILICON = "per synaptic operation; published, not measured"

#: Energy per operation in pJ, by name. Those of chips have no price for MACs.
ENERGY_TABLES: dict[str, EnergyTable] = {
    "horowitz_fp32": EnergyTable(mac=3.7 + 0.9, ac=0.9, source=_HOROWITZ),
    "horowitz_fp16": EnergyTable(mac=1.1 + 0.4, ac=0.4, source=_HOROWITZ),
    "horowitz_int32": EnergyTable(mac=3.1 + 0.1, ac=0.1, source=_HOROWITZ),
    "horowitz_int8": EnergyTable(mac=0.2 + 0.03, ac=0.03, source=_HOROWITZ),
    "horowitz_int8_int32": EnergyTable(
        mac=0.2 + 0.1, ac=0.1, source=f"{_HOROWITZ}; products of 8 bits, added to potentials of 32 bits"
    ),
    "horowitz_shift": EnergyTable(
        mac=0.1 + 0.1, ac=0.1, source=f"{_HOROWITZ}; sums of 32 bits, and a shift for each product, priced like a sum"
    ),
    "truenorth": EnergyTable(mac=math.nan, ac=26.0, source=f"TrueNorth, Merolla et al., Science 2014: {_SILICON}"),
    "loihi": EnergyTable(mac=math.nan, ac=23.6, source=f"Loihi, Davies et al., IEEE Micro 2018: {_SILICON}"),
    "anp_i": EnergyTable(mac=math.nan, ac=1.5, source=f"ANP-I, Zhang et al., ISSCC 2023: {_SILICON}"),
}

#: The table that fits the weights of an exported network, by what ``weights`` of the export says.
TABLE_OF_WEIGHTS = {"float": "horowitz_fp32", "int8": "horowitz_int8_int32", "power_of_two": "horowitz_shift"}


def energy(sops: Number, macs: Number, table: str | EnergyTable = "horowitz_fp32") -> Number:
    r"""Energy of synaptic operations and multiply-accumulates.

    .. math:: E = 10^{-12} \left(\text{SOPs} \cdot e_{AC} + \text{MACs} \cdot e_{MAC}\right)

    Args:
        sops: Synaptic operations, each one accumulate.
        macs: Multiply-accumulates: the effective ones for hardware that skips zeros, else the dense ones.
        table: A name in :data:`ENERGY_TABLES`, a YAML file (:meth:`EnergyTable.from_yaml`), or a table of your own.
            Never add results of two tables.

    Returns:
        Energy in J.

    Raises:
        ValueError: If ``table`` is an unknown name, or there are MACs and it has no price for them; or a number is
            negative.

    Example:
        >>> f"{energy(sops=1e6, macs=1e5):.3g} J"
        '1.36e-06 J'
        >>> f"{energy(sops=1e6, macs=0, table='loihi'):.3g} J"
        '2.36e-05 J'
    """
    entry = energy_table(table)
    sops, macs = _count("sops", sops), _count("macs", macs)
    if entry.prices_macs:
        return 1e-12 * (sops * entry.ac + macs * entry.mac)
    if bool((macs != 0).any()) if isinstance(macs, Tensor) else macs:
        raise ValueError(
            f"Expected argument `table` to have a price for MACs, as there are some, but got one without: "
            f"{entry.source}. The first layer of most networks has real-valued input and MACs. Ask for the energy of "
            "the SOPs alone (`macs=0`) and say that the MACs are left out, or take another table."
        )
    return 1e-12 * (sops * entry.ac + macs * 0)


def _count(argument: str, value: Number) -> Number:
    if isinstance(value, Tensor):
        return value
    return as_number(argument, value, "[0, inf)")


def energy_table(table: str | EnergyTable) -> EnergyTable:
    """Look a table up by name, or read it from a YAML file; a table passes through.

    Raises:
        FileNotFoundError: If ``table`` ends in ``.yaml`` or ``.yml`` and there is no such file.
        ValueError: If it is an unknown name, or the file holds no table.
    """
    if isinstance(table, EnergyTable):
        return table
    if isinstance(table, str) and table.endswith((".yaml", ".yml")):
        return EnergyTable.from_yaml(table, "table")
    if not isinstance(table, str) or table not in ENERGY_TABLES:
        raise ValueError(
            f"Expected argument `table` to be one of {sorted(ENERGY_TABLES)} or a YAML file, but got {shown(table)}. "
            "(Models with more than prices of operations, as of memory, are for `Energy`, `SpikingValidation` and "
            "`profile`.)"
        )
    return ENERGY_TABLES[table]


def break_even_rate(timesteps: int, density: float = 1.0, table: str | EnergyTable = "horowitz_fp32") -> float:
    r"""Spike rate at which a spiking network spends as much as a DNN of the same layers.

    .. math:: r^* = \frac{d \cdot e_{MAC}}{T \cdot e_{AC}}

    as :math:`r T` spikes arrive at every synapse of the one, and a share :math:`d` of the other's MACs is computed.
    Layers that both compute alike, as an analog first layer, cancel; leave them out of ``density``.

    Args:
        timesteps: T.
        density: d, the DNN's effective MACs / dense MACs; 1 for one that skips no zeros.
        table: As for :func:`energy`; one with a price for MACs. For a model with memory see
            :func:`~snnreg_plugins.functional.lemaire_break_even_rate`.

    Returns:
        Spikes/neuron/step, averaged over the inputs of the synaptic layers by their fan-out; above it the DNN is
        cheaper. At 1 or more the spiking network always is, if no neuron spikes twice in a step.

    Raises:
        ValueError: If ``timesteps`` is no integer of at least 1, ``density`` not in [0, 1], or ``table`` unknown,
            or has no price for MACs or a price of 0 for SOPs.

    Example:
        >>> f"{break_even_rate(timesteps=8):.3f} {break_even_rate(timesteps=8, density=0.3):.3f}"
        '0.639 0.192'
    """
    timesteps, density = as_integer("timesteps", timesteps), as_number("density", density, "[0, 1]")
    entry = energy_table(table)
    if not entry.prices_macs or not entry.ac:
        raise ValueError(
            "Expected argument `table` to have prices for MACs and SOPs, so that DNN and SNN can be compared, but got "
            f"{entry.mac:g} pJ per MAC and {entry.ac:g} pJ per SOP: {entry.source}."
        )
    return density * entry.mac / (timesteps * entry.ac)
