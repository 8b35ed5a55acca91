import dataclasses

import pytest
from torch import nn

from snnreg_plugins.functional import (
    COST_MODELS,
    Cost,
    CostModel,
    EnergyTable,
    Geometry,
    LayerFacts,
    PriceList,
    cost_model,
    cost_models,
    lemaire_dense_energy,
    lemaire_energy,
)

# Two layers of a spiking network at T = 4, per sample: an analog one that drives neurons, and a readout.
FIRST = LayerFacts(
    "0", timesteps=4, effective_macs=70, dense_macs=100, effective_macs_at_zero=7, dense_macs_at_zero=10, events_out=8,
    updates=40, receiving=4, active=6, active_receiving=30, weights=100, zero_weights=10,
    geometry=Geometry.of(nn.Linear(10, 10), (10,)),
)  # fmt: skip
LAST = LayerFacts(
    "2", timesteps=4, sops=24, sops_at_zero=3, dense_macs=30, dense_macs_at_zero=4, events_in=8, weights=30,
    geometry=Geometry.of(nn.Linear(10, 3), (10,)),
)  # fmt: skip
# The same of the DNN: 10 inputs of which 7 are not zero, and 10 units of which 5 are.
DNN = [
    dataclasses.replace(FIRST, spiking=False, timesteps=1, updates=0, events_out=0),
    LayerFacts(
        "2", spiking=False, effective_macs=15, dense_macs=30, effective_macs_at_zero=2, dense_macs_at_zero=4,
        geometry=LAST.geometry,
    ),
]  # fmt: skip


def spent(model):
    return sum(map(cost_model(model).spiking, (FIRST, LAST)), cost_model(model).nothing())


def dnn(model, **how):
    model = cost_model(model)
    return model.sum(model.dnn(one, **how) for one in DNN)


def test_arithmetic_by_hand():
    found = spent("horowitz_fp32")
    assert found.macs == pytest.approx(70 * 4.6e-12)
    assert found.synapses == pytest.approx(24 * 0.9e-12)
    assert found.total == pytest.approx(found.macs + found.synapses)
    assert dnn("horowitz_int8").total == pytest.approx(130 * 0.23e-12)
    assert dnn("horowitz_int8", skipping_zeros=True).total == pytest.approx(85 * 0.23e-12)
    assert "neuron updates" in COST_MODELS["horowitz_fp32"].left_out


def test_a_binary_image_costs_a_dnn_that_skips_zeros_synaptic_operations():
    layer = LayerFacts("0", spiking=False, sops=20, dense_macs=50)
    model = COST_MODELS["horowitz_fp32"]
    assert model.dnn(layer, skipping_zeros=True).total == pytest.approx(18e-12)
    assert model.dnn(layer).total == pytest.approx(230e-12)


@pytest.mark.parametrize(("name", "ac"), [("truenorth", 26.0), ("loihi", 23.6), ("anp_i", 1.5)])
def test_a_chip_prices_spikes_alone(name, ac):
    found = spent(name)
    assert (found.total, found.unpriced) == (pytest.approx(24e-12 * ac), 70)
    assert dnn(name) is dnn(name, skipping_zeros=True) is None
    assert not COST_MODELS[name].prices_dnns


def test_lemaire_is_the_published_energy_of_each_layer():
    first = lemaire_energy(nn.Linear(10, 10), (10,), timesteps=4, events_in=0, events_out=8, effective_macs=70)
    last = lemaire_energy(nn.Linear(10, 3), (10,), timesteps=4, events_in=8, events_out=0, sops=24)
    found = spent("lemaire")
    assert found.total == pytest.approx((first + last).total)
    assert found.memory == pytest.approx((first + last).memory)
    dense = lemaire_dense_energy(nn.Linear(10, 10), (10,)) + lemaire_dense_energy(nn.Linear(10, 3), (10,))
    assert dnn("lemaire").total == pytest.approx(dense.total)
    assert dnn("lemaire", skipping_zeros=True) is None
    leaking = COST_MODELS["lemaire"].spiking(dataclasses.replace(FIRST, leaky=True))
    assert leaking.total - first.total == pytest.approx(40 * 3.2e-12)


def test_lemaire_reads_no_weight_of_zero_that_is_no_synapse():
    model, size = COST_MODELS["lemaire"], Geometry.of(nn.Conv2d(2, 3, 3, padding=1), (2, 4, 4))
    whole = LayerFacts("c", spiking=False, weights=54, zero_weights=18, geometry=size)
    all_of_them, fewer = model.dnn(whole), model.dnn(whole.without_zero_weights())
    assert size.macs == 54 * 16
    assert [fewer.macs / all_of_them.macs, fewer.weights / all_of_them.weights] == pytest.approx([2 / 3, 2 / 3])
    assert (fewer.outputs, fewer.neurons) == (all_of_them.outputs, all_of_them.neurons)
    dense = LayerFacts("f", spiking=False, weights=30, zero_weights=10, geometry=LAST.geometry)
    assert model.dnn(dense).inputs == model.dnn(dense.without_zero_weights()).inputs  # each is read once
    assert model.dnn(dense.without_zero_weights()).macs == pytest.approx(20 * 3.2e-12)


def test_lemaire_prices_neurons_that_no_layer_drives_and_no_product_without_a_layer():
    model = COST_MODELS["lemaire"]
    ram = 1.09e-5 * 10 * 32 + 13.2
    coder = model.spiking(LayerFacts("coder", timesteps=4, updates=40, events_out=6))
    assert coder.total == pytest.approx(1e-12 * (46 * 0.1 + 80 * ram + 6 * ram))
    attention = LayerFacts("attention", timesteps=4, sops=5, effective_macs=7, dense_macs=20)
    assert (model.spiking(attention).total, model.spiking(attention).unpriced) == (0, 12)
    assert model.dnn(dataclasses.replace(attention, spiking=False)).unpriced == 20


def test_bit_matched_by_hand():
    acc, found = 0.05448, spent("bit_matched")
    mac8 = 3.7 / 16 + 0.9 / 4
    assert found.macs == pytest.approx(70e-12 * mac8)
    assert found.synapses == pytest.approx(24e-12 * acc)
    assert found.weights == pytest.approx(94e-12 * 160)
    assert found.neurons == pytest.approx((40 + 8) * 1e-12 * acc)
    assert found.potentials == pytest.approx((40 + 12) * 4e-12)  # of the readout, too
    assert found.inputs == pytest.approx(10 * 2e-12)
    mac3 = 3.7 * (3 / 32) ** 2 + 0.9 * 3 / 32
    assert dnn("bit_matched", timesteps=4).total == pytest.approx(1e-12 * (130 * (mac3 + 60) + 20 * 0.75))
    sparse = dnn("bit_matched", timesteps=4, skipping_zeros=True)
    assert sparse.total == pytest.approx(1e-12 * (85 * (mac3 + 60) + 20 * 0.75))
    with pytest.raises(ValueError, match=r"`timesteps`.*None.*beside a spiking network"):
        dnn("bit_matched")


def reference(rate, timesteps):
    """Linear(256, 128), neurons, Linear(128, 10), a readout: all that spikes does so at one rate."""
    first, last = 256 * 128, 128 * 10
    return [
        LayerFacts(
            "0", timesteps, sops=rate * timesteps * first, dense_macs=first, events_in=rate * timesteps * 256,
            events_out=rate * timesteps * 128, updates=timesteps * 128,
            geometry=Geometry.of(nn.Linear(256, 128), (256,)),
        ),
        LayerFacts(
            "2", timesteps, sops=rate * timesteps * last, dense_macs=last, events_in=rate * timesteps * 128,
            geometry=Geometry.of(nn.Linear(128, 10), (128,)),
        ),
    ]  # fmt: skip


def both(rate, timesteps):
    model = COST_MODELS["bit_matched"]
    facts = reference(rate, timesteps)
    return (model.sum(map(price, facts)).total for price in (model.spiking, model.dnn))


@pytest.mark.parametrize(("timesteps", "percent"), [(5, 7.50), (6, 6.25), (7, 5.36), (8, 6.25), (9, 5.56), (10, 5.00)])
def test_bit_matched_networks_spend_the_same_at_the_published_rates(timesteps, percent):
    silent, dense = both(0.0, timesteps)
    all_spike, _ = both(1.0, timesteps)
    assert 100 * (dense - silent) / (all_spike - silent) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize(
    ("timesteps", "rate", "spiking", "dense"),
    [(7, 0.02, 7.67e5, 2.05e6), (7, 0.05, 1.91e6, 2.05e6), (7, 0.1, 3.82e6, 2.05e6), (10, 0.05, 2.73e6, 2.73e6)],
)
def test_bit_matched_networks_spend_what_was_worked_out(timesteps, rate, spiking, dense):
    assert [1e12 * joule for joule in both(rate, timesteps)] == pytest.approx([spiking, dense], rel=3e-3)


def test_effective_operations_by_hand():
    found = spent("eflops")
    assert (found.macs, found.synapses, found.neurons) == (2 * 63, 21, 4 * 1 + 6 * 1 + 30 * 2)
    assert found.unit == "EFLOPs"
    leaking = COST_MODELS["eflops"].spiking(dataclasses.replace(FIRST, leaky=True))
    assert leaking.neurons == 4 * 3 + 6 * 5 + 30 * 6
    assert dnn("eflops").total == 2 * (90 + 26)
    assert dnn("eflops", skipping_zeros=True).total == 2 * (63 + 13)


def test_what_was_not_counted_is_not_taken_for_zero():
    for missing, said in (
        ("active", "those of '0'.*were counted without"),
        ("effective_macs_at_zero", "'0' with `eff"),
    ):
        with pytest.raises(ValueError, match=said):
            COST_MODELS["eflops"].spiking(dataclasses.replace(FIRST, **{missing: None}))
    with pytest.raises(ValueError, match="`events_in`"):
        COST_MODELS["lemaire"].spiking(dataclasses.replace(FIRST, events_in=None))


@pytest.mark.parametrize("name", COST_MODELS)
def test_which_zeros_a_dnn_skips_is_told_by_the_dnn(name):
    with pytest.raises(ValueError, match="'0' are of a spiking network"):
        COST_MODELS[name].dnn(FIRST, skipping_zeros=True, timesteps=4)


def test_published_examples():
    # NeuroBench: a layer of 3 x 3 weights, inputs (0, 1, 0), ... give 4 effective of 9 MACs; ResNet-18: 1.82 GMACs.
    layer = LayerFacts("0", spiking=False, effective_macs=4, dense_macs=9)
    unit = cost_model(EnergyTable(1.0, 1.0, "counts"))
    assert unit.dnn(layer, skipping_zeros=True).total == pytest.approx(4e-12)
    assert unit.dnn(layer).total == pytest.approx(9e-12)
    net = LayerFacts("resnet18", spiking=False, dense_macs=1.82e9)
    assert COST_MODELS["horowitz_fp32"].dnn(net).total == pytest.approx(8.372e-3)


def test_prices_of_ones_own_by_hand(tmp_path):
    path = tmp_path / "chip.yaml"
    path.write_text(
        "source: my chip\nac: {8: 0.03, 32: 0.1}\nmac: {8: 0.23, 32: 3.2}\nupdate: 0.5\n"
        "access: {weights: {8: 1.25, 32: 5}, potentials: 2, inputs: 3, outputs: 4}\n"
    )
    model = cost_model(str(path))
    found = model.spiking(FIRST) + model.spiking(LAST)
    assert found.macs == pytest.approx(70 * 3.2e-12)
    assert found.synapses == pytest.approx(24 * 0.1e-12)
    assert found.neurons == pytest.approx((40 + 12) * 0.5e-12)
    assert found.weights == pytest.approx(94 * 5e-12)
    assert found.potentials == pytest.approx(2 * (24 + 52) * 2e-12)
    assert found.inputs == pytest.approx((7 + 8) * 3e-12)
    assert found.outputs == pytest.approx(8 * 4e-12)
    assert dnn(str(path)).total == pytest.approx(1e-12 * (130 * (3.2 + 5) + 20 * 3 + 13 * 4))
    assert dnn(str(path), skipping_zeros=True).total == pytest.approx(1e-12 * (85 * (3.2 + 5) + (7 + 5) * 3 + 13 * 4))
    few = model.spiking(dataclasses.replace(LAST, weight_bits=8))
    assert (few.synapses, few.weights) == (pytest.approx(24 * 0.03e-12), pytest.approx(24 * 1.25e-12))
    with pytest.raises(ValueError, match=r"`ac` for weights of 4 bits.*\[8, 32\]"):
        model.spiking(dataclasses.replace(LAST, weight_bits=4))
    assert model.name == str(path)


def test_prices_that_are_missing_are_told():
    model = PriceList("my chip", ac=1.0)
    assert model.spiking(FIRST).unpriced == 70
    assert model.dnn(DNN[0]) is None
    assert {"MACs", "neuron updates", "access to weights"} <= set(model.left_out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ac: 1", r"\['ac'\]"),
        ("{ac: 1, source: x, leakage: 3}", "leakage"),
        ("{ac: {}, source: x}", "`ac`"),
        ("{ac: {few: 1}, source: x}", "`bits of ac`.*'few'"),
        ("{ac: {8: cheap}, source: x}", "`ac`.*'cheap'"),
        ("{ac: 1, source: x, access: 3}", "`access`.*3"),
        ("{ac: 1, source: x, access: {biases: 3}}", "`access`.*biases"),
        ("{ac: 1, source: x, access: {weights: -3}}", r"`access\.weights`.*-3"),
        ("{ac: 1, source: 5}", "`source`.*5"),
    ],
)
def test_a_file_without_prices_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"`table`.*chip\.yaml.*{message}") as error:
        cost_model(str(path))
    assert "\n" not in str(error.value)


def test_costs_of_two_models_never_add_up():
    for names in (("horowitz_fp32", "horowitz_fp16"), ("lemaire", "eflops")):
        first, second = (COST_MODELS[name].spiking(LAST) for name in names)
        with pytest.raises(ValueError, match=f"'{names[0]}' and '{names[1]}', which do not add up"):
            first + second
    with pytest.raises(TypeError):
        COST_MODELS["lemaire"].spiking(LAST) + 1e-9


def test_a_model_is_found_by_name_table_or_itself():
    class Mine(CostModel):
        name, title, source = "mine", "mine", "me"

        def spiking(self, facts):
            return self._cost(synapses=facts.sops)

        def dnn(self, facts, *, skipping_zeros=False, timesteps=None):
            return None

    mine = Mine()
    assert cost_model(mine) is mine
    assert mine.spiking(LAST) == Cost("mine", synapses=24)
    assert [model.name for model in cost_models([mine, "lemaire", EnergyTable(1, 1, "own")])] == [
        "mine", "lemaire", "custom"
    ]  # fmt: skip
    assert cost_models("eflops") == (COST_MODELS["eflops"],)
    assert cost_models("eflops, lemaire") == (COST_MODELS["eflops"], COST_MODELS["lemaire"])


@pytest.mark.parametrize(
    "wrong", ["abacus", None, 3, ["lemaire", "lemaire"], [], ["lemaire", "abacus"], "lemaire,", ","]
)
def test_what_is_no_model_is_refused_with_those_there_are(wrong):
    with pytest.raises(ValueError, match="`table` to be one"):
        cost_models(wrong)


def test_every_model_tells_where_it_is_from_and_what_it_leaves_out():
    for name, model in COST_MODELS.items():
        assert model.name == name
        assert model.title != name
        assert model.source
        assert model.left_out
