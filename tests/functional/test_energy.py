import dataclasses

import pytest
import torch

from snnreg_plugins.functional import ENERGY_TABLES, EnergyTable, energy

# Horowitz, ISSCC 2014: pJ of (multiply, add).
HOROWITZ = {"fp32": (3.7, 0.9), "fp16": (1.1, 0.4), "int32": (3.1, 0.1), "int8": (0.2, 0.03)}


def test_tables_are_the_published_ones():
    assert ENERGY_TABLES.keys() == {f"horowitz_{kind}" for kind in HOROWITZ}
    for kind, (multiply, add) in HOROWITZ.items():
        table = ENERGY_TABLES[f"horowitz_{kind}"]
        assert table.ac == pytest.approx(add)
        assert table.mac == pytest.approx(multiply + add)
        assert "Horowitz" in table.source


def test_energy_is_operations_times_their_energy():
    for kind, (multiply, add) in HOROWITZ.items():
        assert energy(1000, 10, f"horowitz_{kind}") == pytest.approx(1e-12 * (1000 * add + 10 * (multiply + add)))
    # ResNet18 at 1.82 GMAC in fp32.
    assert energy(0, 1.82e9) == pytest.approx(8.372e-3)
    assert energy(0, 0) == 0


def test_energy_of_tensors():
    joule = energy(torch.tensor([1e6, 0.0]), torch.tensor([0.0, 1e6]), EnergyTable(mac=2.0, ac=0.5, source="mine"))
    torch.testing.assert_close(joule, torch.tensor([0.5e-6, 2e-6]))


def test_a_table_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ENERGY_TABLES["horowitz_fp32"].mac = 0.0


def test_an_unknown_table_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="`table`.*horowitz_fp16.*'loihi'"):
        energy(1.0, 1.0, "loihi")
