"""``snnreg profile``: what any network spends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnreg_plugins._console import say
from snnreg_plugins.cli.parser import Parser


def main(words: Sequence[str]) -> None:
    """Run ``snnreg profile`` with the words behind it."""
    parser = _parser()
    options = parser.parse_args(list(words))
    # Here, as it takes seconds: --help and wrong words are answered before.
    from snnreg_plugins.profile import load_factory, load_inputs, profile

    made = load_factory(options.factory)
    inputs = load_inputs(options.data, options.input_shape, options.batch, options.batch_dim)
    result = profile(
        made,
        inputs,
        timesteps=options.timesteps,
        table=options.table,
        batch_dim=options.batch_dim,
        input_events=options.input_events,
        count_zero_weights=options.count_zero_weights,
    )
    path = None if options.output is None else Path(options.output) / "profile.json"
    if path is not None:
        result.save_json(path)
    result.print()
    if path is not None:
        say(f"Written: {path}")


def _parser() -> Parser:
    parser = Parser(
        prog="snnreg profile",
        usage="snnreg profile module.path:name --input-shape 1 28 28 [options]",
        description="Run any network on a batch, and print what each layer does: operations, spikes, energy.",
    )
    parser.add_argument(
        "factory", type=str, help="module.path:name of a network, or of what makes one, such as networks:make_net"
    )
    parser.add_argument("-c", "--config", action="config", help="these options from a YAML file")
    parser.add_argument("--input-shape", type=int, nargs="+", help="shape of a sample, without the batch: 1 28 28")
    parser.add_argument("--batch", type=int, default=8, help="number of samples (default: 8)")
    parser.add_argument(
        "--batch-dim", type=int, default=0, help="dimension of the batch; 1 for input (T, B, ...) (default: 0)"
    )
    parser.add_argument(
        "--data", type=str, default="random", help="random, or a file that torch.save wrote, of a tensor of samples"
    )
    parser.add_argument(
        "--input-events", type=bool, help="whether whole numbers in the data are events (true), or cost MACs (false)"
    )
    parser.add_argument("--timesteps", type=int, help="calls of a network that takes one time step at a time")
    parser.add_argument(
        "--table",
        type=str,
        default="horowitz_fp32",
        help="model of cost, such as lemaire or eflops, or several with commas, or a YAML file of your own prices; "
        "another name is told all of them (default: horowitz_fp32)",
    )
    parser.add_argument(
        "--count-zero-weights", type=bool, help="whether a weight of exactly zero is a synapse (true) or none (false)"
    )
    parser.add_argument("--output", type=str, help="folder to write profile.json to")
    return parser
