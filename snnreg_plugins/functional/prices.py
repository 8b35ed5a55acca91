"""A user's own prices: by bits, for neurons and for accesses to memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from snnreg_plugins._checks import as_integer, as_number, shown
from snnreg_plugins._files import read_yaml
from snnreg_plugins.functional.costs import Cost, CostModel, LayerFacts, Need, require_own

#: pJ, the same at all widths, or by the bits of a weight.
Price: TypeAlias = float | Mapping[int, float]

_ACCESSES = ("weights", "potentials", "inputs", "outputs")


@dataclass(frozen=True)
class PriceList(CostModel):
    r"""Prices of your own, in pJ: of operations, by the bits of a weight, of neuron updates, and of memory accesses.

    Accesses are those of :func:`~snnreg_plugins.functional.lemaire_energy`: a weight is read for each operation, a
    potential read and written for each SOP and each update, an input read once for each event, or, of real-valued
    input, for each MAC (once for all outputs of a fully connected layer), an output written for each spike. A DNN reads
    a weight for each MAC, and writes all its outputs.

    Args:
        source: Where the prices are from.
        ac: Of a synaptic operation.
        mac: Of a MAC; None if there is no price for it, and none for a DNN.
        update: Of the update of a neuron; None if there is none.
        access: Of an access, by what is read or written: ``"weights"``, ``"potentials"``, ``"inputs"``, ``"outputs"``.
        name: Name of the model.

    Each price is a number, or numbers by the bits of a weight: ``{8: 0.03, 32: 0.1}``. Weights of an exported network
    have 32 bits, or as few as it was given.

    Raises:
        ValueError: If a price is no number of at least 0, or ``source`` is empty.

    Example:
        >>> mine = PriceList("my chip", ac={8: 0.03, 32: 0.1}, mac=0.23, update=0.5, access={"weights": 5.0})
        >>> cost = mine.spiking(LayerFacts("fc", sops=100, updates=10, weight_bits=8))
        >>> {part: round(1e12 * joule, 1) for part, joule in cost.details().items()}  # pJ
        {'synapses': 3.0, 'neurons': 5.0, 'weights': 500.0}
    """

    source: str
    ac: Price
    mac: Price | None = None
    update: Price | None = None
    access: Mapping[str, Price] = field(default_factory=dict)
    name: str = "custom"
    title: str = "own prices"
    needs: ClassVar[frozenset[Need]] = frozenset({"events"})

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise ValueError(
                f"Expected argument `source` to say where the prices were published, but got {self.source!r}."
            )
        object.__setattr__(self, "ac", _price("ac", self.ac))
        for name in ("mac", "update"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _price(name, value))
        if not isinstance(self.access, Mapping) or not self.access.keys() <= set(_ACCESSES):
            raise ValueError(
                f"Expected argument `access` to have prices for some of {list(_ACCESSES)}, but got "
                f"{shown(self.access)}."
            )
        prices = {name: _price(f"access.{name}", value) for name, value in self.access.items()}
        object.__setattr__(self, "access", prices)
        missing = [("MACs", self.mac), ("neuron updates", self.update)]
        missing += [(f"access to {name}", prices.get(name)) for name in _ACCESSES]
        left_out = (*(name for name, price in missing if price is None), "communication", "static power")
        object.__setattr__(self, "left_out", left_out)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], argument: str = "path") -> PriceList:
        r"""Read prices from a YAML file; all but ``ac`` and ``source`` may be missing.

        .. code-block:: yaml

            source: my chip, datasheet of 2024, Table 3
            ac: {8: 0.03, 32: 0.1}
            mac: {8: 0.23, 32: 3.2}
            update: 0.5
            access: {weights: {8: 1.25, 32: 5.0}, potentials: 5.0}

        Args:
            path: The file; nothing in it is run.
            argument: The argument that named it, for errors.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds anything else.
        """
        content = read_yaml(path, argument)
        allowed = {"ac", "source", "mac", "update", "access"}
        try:
            if not isinstance(content, dict) or not {"ac", "source"} <= content.keys() <= allowed:
                found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
                raise ValueError(
                    "Expected the keys `ac`, `source` and perhaps `mac`, `update` and `access`, but got "
                    f"{shown(found)}."
                )
            if content.get("access") is None:
                content.pop("access", None)
            return cls(**content, name=os.fspath(path), title=f"own prices ({os.path.basename(path)})")
        except ValueError as error:
            raise ValueError(
                f"Expected argument `{argument}` to name a list of prices, but {os.fspath(path)!r} is none: {error}"
            ) from error

    def spiking(self, facts: LayerFacts) -> Cost:
        """Price a layer of a spiking network, with its neurons."""
        bits = facts.weight_bits or 32
        size = facts.geometry
        macs_per_read = 1 if size is None else size.macs_per_read
        counts = {
            "weights": facts.operations,
            "potentials": 2 * (facts.sops + facts.state_updates),
            "inputs": facts.counted("events_in") + facts.effective_macs / macs_per_read,
            "outputs": facts.events_out,
        }
        priced = self.mac is not None
        return self._cost(
            macs=_spent(facts.effective_macs, bits, "mac", self.mac),
            synapses=_spent(facts.sops, bits, "ac", self.ac),
            neurons=_spent(facts.state_updates, bits, "update", self.update),
            **self._accesses(bits, counts),
            unpriced=0.0 if priced else facts.effective_macs,
        )

    def dnn(self, facts: LayerFacts, *, skipping_zeros: bool = False, timesteps: int | None = None) -> Cost | None:
        """Price a layer of a DNN; None without a price for MACs."""
        require_own(facts, skipping_zeros)
        if self.mac is None:
            return None
        bits, size = facts.weight_bits or 32, facts.geometry
        macs = facts.effective_macs if skipping_zeros else facts.dense_macs
        sops = facts.sops if skipping_zeros else 0.0
        counts = {
            "weights": macs + sops,
            "inputs": (macs + sops) / (1 if size is None else size.macs_per_read),
            "outputs": 0 if size is None else facts.uses * size.outputs,
        }
        return self._cost(
            macs=_spent(macs, bits, "mac", self.mac),
            synapses=_spent(sops, bits, "ac", self.ac),
            **self._accesses(bits, counts),
        )

    def _accesses(self, bits: int, counts: dict[str, float]) -> dict[str, float]:
        return {name: _spent(n, bits, f"access.{name}", self.access.get(name)) for name, n in counts.items()}


def _price(name: str, value: Any) -> Price:
    if not isinstance(value, Mapping):
        return as_number(name, value, "[0, inf)")
    if not value:
        raise ValueError(f"Expected argument `{name}` to be a price, or prices by bits, but got {shown(value)}.")
    return {as_integer(f"bits of {name}", bits): as_number(name, price, "[0, inf)") for bits, price in value.items()}


def _spent(number: float, bits: int, name: str, price: Price | None) -> float:
    """Price something for weights of some bits, in J; 0 where there is no price."""
    if not number or price is None:
        return 0.0
    if isinstance(price, Mapping):
        if bits not in price:
            raise ValueError(
                f"Expected a price `{name}` for weights of {bits} bits, which the network has, but there are those for "
                f"{sorted(price)}. Add it to the list."
            )
        price = price[bits]
    return 1e-12 * number * price
