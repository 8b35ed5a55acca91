import copy

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from snnreg_plugins import SpikeRate, SynapticOperations
from snnreg_plugins.data import OpticalChannel
from snnreg_plugins.modules import Equalizer, SpikingEqualizer


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("pattern_bits", [None, 1])
def test_scores_and_costs_are_those_of_the_loop_written_out(recurrent, pattern_bits):
    torch.manual_seed(0)
    network = SpikingEqualizer(5, 3, hidden=7, lines=2, timesteps=4, pattern_bits=pattern_bits, recurrent=recurrent)
    x = torch.randn(6, 5)
    read, decay = network.encoder(x), network.neurons.beta
    with SynapticOperations(network) as sops, SpikeRate(network) as rate:
        scores = network(x)
    potential, spikes, emitted = torch.zeros(6, 7), torch.zeros(6, 7), []
    for frame in read:
        current = network.fc1(frame) + (spikes @ network.recurrent.weight.T if recurrent else 0)
        potential = decay * potential + current - (potential > 1).float()
        spikes = (potential > 1).float()
        emitted.append(spikes)
    torch.testing.assert_close(scores, sum(map(network.fc2, emitted)) / 4)
    total = torch.stack(emitted)
    assert total.sum() > 0
    assert rate.compute() == pytest.approx(total.mean().item())
    events = {"fc2": 3 * total.sum().item() / 6}
    if recurrent:
        events["recurrent"] = 7 * total[:-1].sum().item() / 6
    if pattern_bits == 1:
        events["fc1"] = 7 * read.sum().item() / 6
    assert {name: value for name, value in sops.by_layer().items() if value} == pytest.approx(events)
    macs = 0 if pattern_bits == 1 else 7 * (read != 0).sum().item() / 6
    assert sops.total("effective_macs").item() == pytest.approx(macs)


def test_copies_after_a_pass_and_half_precision():
    network, x = SpikingEqualizer(5, 3, hidden=7, lines=2, timesteps=4), torch.randn(6, 5)
    scores = network(x)
    assert torch.equal(copy.deepcopy(network)(x), scores)
    assert network.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_it_beats_a_linear_equalizer_soon():
    torch.manual_seed(0)
    data = OpticalChannel(symbols=50_000, validation_size=5000, taps=21, batch_size=250)
    network = SpikingEqualizer(taps=21, hidden=40, lines=4, timesteps=4, bits=6)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for x, y in data.train_dataloader():
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    received, sent = data.val_dataloader().dataset.__getitems__(range(5000))
    assert (network(received).argmax(1) != sent).float().mean() < 0.06


def test_errors_and_costs_are_logged():
    torch.manual_seed(0)
    data = OpticalChannel(symbols=100, validation_size=100, test_size=250, taps=5, batch_size=100)
    network = SpikingEqualizer(taps=5, hidden=7, lines=2, timesteps=4)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    logged = trainer.test(Equalizer(network), data, verbose=False)[0]
    received, sent = data.test_dataloader().dataset.__getitems__(range(250))
    with SynapticOperations(network) as sops, SpikeRate(network) as rate, torch.no_grad():
        decided = network(received).argmax(1)
    codes = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]])
    assert logged["test/ser"] == pytest.approx((decided != sent).float().mean().item())
    assert logged["test/ser"] == pytest.approx(1 - logged["test/accuracy"])
    assert logged["test/ber"] == pytest.approx((codes[decided] != codes[sent]).float().mean().item())
    assert logged["test/sops"] == pytest.approx(sops.compute().item())
    assert logged["test/effective_macs"] == pytest.approx(sops.total("effective_macs").item()) != 0
    assert logged["test/spike_rate"] == pytest.approx(rate.compute().item())


@pytest.mark.parametrize(
    ("options", "message"), [(dict(taps=0), "`taps`"), (dict(limit=0.0), "`limit`"), (dict(beta=1.5), "`beta`")]
)
def test_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SpikingEqualizer(**options)
