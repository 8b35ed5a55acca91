"""Symbol errors, spikes and operations of a spiking equalizer, by how sparse its input code is made.

    python -m tests.benchmarks.equalizer --output equalizer.json

trains one network per kind of pattern and strength on 200,000 simulated symbols, and measures each on 100,000 others.
Runs that the output file already holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch import nn

from snnreg_plugins import SpikeRate, SynapticOperations, TableSparsity
from snnreg_plugins._files import atomic
from snnreg_plugins._text import in_short
from snnreg_plugins.data import OpticalChannel
from snnreg_plugins.functional import bit_error_rate
from snnreg_plugins.modules import SpikingEqualizer
from tests.benchmarks.common import fit, head, line

STRENGTHS = [0.0, 1e-2, 1e-1]
PATTERNS = {"real": None, "8 bits": 8, "spikes": 1}


def linear(data: OpticalChannel) -> float:
    """Symbol errors of the linear equalizer of as many taps that is best in the mean square."""
    squares = torch.tensor(data.levels, dtype=torch.float64).square()
    parts = [loader.dataset for loader in (data.train_dataloader(), data.test_dataloader())]
    (x, y), (received, sent) = [(nn.functional.pad(it.windows.double(), (0, 1), value=1.0), it.sent) for it in parts]
    weights = torch.linalg.lstsq(x, squares[y].unsqueeze(1)).solution
    decided = (received @ weights - squares).abs().argmin(1)
    return (decided != sent).double().mean().item()


def train(bits: int | None, strength: float, epochs: int, seed: int) -> dict:
    """Train and measure one network."""
    seed_everything(seed, verbose=False)
    data = OpticalChannel()
    model = fit(SpikingEqualizer(pattern_bits=bits), data, epochs, *([TableSparsity(strength)] if strength else []))
    network, decided, sent = model.network.eval(), [], []
    with torch.no_grad(), SynapticOperations(network) as operations, SpikeRate(network) as rate:
        for x, y in data.test_dataloader():
            decided.append(network(x).argmax(1))
            sent.append(y)
    decided, sent = torch.cat(decided), torch.cat(sent)
    patterns = network.encoder.patterns()
    return {
        "ser": (decided != sent).double().mean().item(),
        "ber": bit_error_rate(decided, sent, data.num_classes).item(),
        "spike_rate": rate.compute().item(),
        "sops": operations.compute().item(),
        "macs": operations.total("effective_macs").item(),
        "entries": (patterns != 0).sum().item() / patterns[..., 0, 0].numel(),
        "sparsity": network.encoder.sparsity().item(),
    }


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("equalizer.json"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    print(f"A linear equalizer: {100 * linear(OpticalChannel()):.2f} % of symbols wrong.\n")
    columns = ("symbols wrong", "bits wrong", "spike rate", "SOPs", "MACs", "entries that are not 0")
    print(head("pattern", "strength", *columns))
    for pattern, bits in PATTERNS.items():
        for strength in STRENGTHS:
            key = f"{pattern}, {strength:g}, {options.epochs} epochs, seed {options.seed}"
            if key not in results:
                results[key] = train(bits, strength, options.epochs, options.seed)
                with atomic(options.output) as temporary:
                    temporary.write_text(json.dumps(results, indent=2))
            it = results[key]
            wrong = (f"{100 * it[kind]:.2f} %" for kind in ("ser", "ber"))
            spent = (in_short(it[kind]) for kind in ("sops", "macs"))
            print(
                line(pattern, f"{strength:g}", *wrong, f"{it['spike_rate']:.3f}", *spent, f"{it['entries']:.0f}"),
                flush=True,
            )


if __name__ == "__main__":
    main()
