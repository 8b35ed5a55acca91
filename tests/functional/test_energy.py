import dataclasses
import math

import pytest
import torch

from snnreg_plugins.functional import ENERGY_TABLES, EnergyTable, break_even_rate, energy, energy_table

# Horowitz, ISSCC 2014: pJ of (multiply, add).
HOROWITZ = {
    "fp32": (3.7, 0.9), "fp16": (1.1, 0.4), "int32": (3.1, 0.1), "int8": (0.2, 0.03),
    # Of few bits, added up in 32.
    "int8_int32": (0.2, 0.1), "shift": (0.1, 0.1),
}  # fmt: skip

# pJ per synaptic operation of chips, which have no price for MACs.
SILICON = {"truenorth": 26.0, "loihi": 23.6, "anp_i": 1.5}


def test_tables_are_the_published_ones():
    assert ENERGY_TABLES.keys() == {f"horowitz_{kind}" for kind in HOROWITZ} | SILICON.keys()
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
    with pytest.raises(ValueError, match="`table`.*horowitz_fp16.*'abacus'"):
        energy(1.0, 1.0, "abacus")


@pytest.mark.parametrize(("name", "ac"), SILICON.items())
def test_a_chip_prices_synaptic_operations_alone(name, ac):
    table = ENERGY_TABLES[name]
    assert "published, not measured" in table.source
    assert (table.ac, table.prices_macs) == (ac, False)
    assert energy(1000, 0, name) == pytest.approx(1e-9 * ac)
    sops = torch.tensor([1e3, 0.0])
    torch.testing.assert_close(energy(sops, torch.zeros(2), name), sops * ac * 1e-12)
    for sops, macs in ((1000, 1), (torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]))):
        with pytest.raises(ValueError, match=r"`table`.*price for MACs.*not measured.*macs=0"):
            energy(sops, macs, name)


@pytest.mark.parametrize(
    "values", [(-1.0, 0.9), (4.6, -0.1), (4.6, math.nan), (math.inf, 0.9), ("much", 0.9), (4.6, True), (None, 1.0)]
)
def test_prices_are_numbers(values):
    with pytest.raises(ValueError, match=r"`(mac|ac)` to be finite and at least 0, but got"):
        EnergyTable(*values, source="mine")


def test_a_table_names_its_source():
    with pytest.raises(ValueError, match="`source`"):
        EnergyTable(1.0, 1.0, " ")


def test_a_table_of_ones_own_from_yaml(tmp_path):
    path = tmp_path / "chip.yaml"
    path.write_text("mac: 2e-1\nac: 1\nsource: my chip\n")
    assert EnergyTable.from_yaml(path) == energy_table(str(path)) == EnergyTable(0.2, 1, "my chip")
    assert energy(10, 10, str(path)) == pytest.approx(12e-12)
    path.write_text("ac: 1.5\nsource: my spiking chip\n")
    assert not EnergyTable.from_yaml(path).prices_macs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "`ac`, `source`.*list"),
        ("", "NoneType"),
        ("ac: 1", r"\['ac'\]"),
        ("{ac: 1, source: x, leakage: 3}", "leakage"),
        ("{ac: cheap, source: x}", "`ac`.*'cheap'"),
        ("{ac: -1, source: x}", "`ac`.*-1"),
        ("{ac: 1, source: 5}", "`source`.*5"),
        ("{ac: 1", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "could not determine"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"`table`.*chip\.yaml.*{message}") as error:
        energy_table(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        energy_table("nowhere.yaml")


@pytest.mark.parametrize("table", ["horowitz_fp32", "horowitz_int8", EnergyTable(10.0, 1.0, "mine")])
@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("timesteps", [1, 8])
def test_at_the_break_even_rate_both_spend_the_same(table, density, timesteps):
    synapses = 12_345
    rate = break_even_rate(timesteps, density, table)
    assert energy(rate * timesteps * synapses, 0, table) == pytest.approx(energy(0, density * synapses, table))


def test_break_even_by_hand():
    assert break_even_rate(8) == pytest.approx(4.6 / (8 * 0.9))
    assert break_even_rate(8, 0.25, "horowitz_int8") == pytest.approx(0.25 * 0.23 / (8 * 0.03))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "`timesteps`"),
        ((4.0,), "`timesteps`"),
        ((4, 1.5), "`density`"),
        ((4, 1.0, "loihi"), "`table`.*prices for MACs and SOPs.*nan"),
        ((4, 1.0, "abacus"), "`table`.*'abacus'"),
    ],
)
def test_a_rate_that_cannot_be_had_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        break_even_rate(*arguments)
