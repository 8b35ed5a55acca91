"""Export a trained network if it does not spike already, and write what it scores and spends to a run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from datetime import date
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from snnreg_plugins import __version__
from snnreg_plugins._console import held, say
from snnreg_plugins._models import part_of
from snnreg_plugins.export import ConversionError, deploy, to_snntorch
from snnreg_plugins.export.options import CHOSEN
from snnreg_plugins.metrics.scores import Score, Task, loss_of_modules
from snnreg_plugins.reports.diagnose import diagnose
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.folder import RECIPE, Contents, settings_of
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.own import Readout, as_it_is, exported_within, require_around
from snnreg_plugins.reports.parts import About
from snnreg_plugins.reports.record import record
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.run import Run
from snnreg_plugins.reports.save import savings
from snnreg_plugins.spiking.network import SpikingNetwork
from snnreg_plugins.watching.layers import spikes_already

# Time steps of the spikes that the page shows; more are too many for its width.
_LONGEST = 64


@held()
def export_run(
    model: nn.Module,
    datamodule: Any,
    run: Run,
    *,
    options: Mapping[str, Any],
    steps: Sequence[int],
    calibration_batches: int,
    table: str | Sequence[str] | None,
    count_zero_weights: bool | None = None,
    diagnosed: bool,
    html: bool,
    limit_batches: float | None = None,
    recipe: str | os.PathLike[str] | None = None,
    unpack: Callable[[Any], tuple[Tensor, Tensor]] = tuple,
    readout: Readout = as_it_is,
    input_events: bool | None = None,
    metric: Metric | Task | Score | None = None,
    part: str | None = None,
    penalty: str = "",
    saving: bool = False,
    held_out: Callable[[], Iterable[Any]] | None = None,
) -> Report:
    """Export ``model``, write the files of a run, return the report, and print the results when all is done.

    The network is written first, so that it is there whatever becomes of the rest.

    Args:
        model: The trained DNN or a LightningModule around it. Or what spikes already: an exported
            :class:`~snnreg_plugins.SpikingNetwork`, or a module around one, which may have the DNN for its ``dnn``, as
            a :class:`~snnreg_plugins.modules.SpikingClassifier` does; or any other network, which is reported on as it
            is, while there is no file for it.
        datamodule: Gives ``train_dataloader`` and ``test_dataloader`` of (input, label) batches.
        run: Where to.
        options: Options of the export.
        steps: Numbers of time steps to report on.
        calibration_batches: Batches of training data to balance thresholds on.
        table: Models of cost; None for the table of the network's weights and others beside it.
        count_zero_weights: Whether a weight of zero is a synapse in what is priced; see
            :func:`~snnreg_plugins.report`.
        diagnosed: Whether to tell what each layer loses.
        html: Whether to write the page.
        limit_batches: Test batches to measure on: a number (int), a share (float), or None for all.
        recipe: The settings of the training, a YAML file, for the page.
        unpack: From a batch to inputs and targets.
        readout: From what a network that spikes already returns to its scores; see :func:`~snnreg_plugins.report`.
        input_events: Whether whole numbers in the input of such a network are events; see there.
        metric: What is scored; if None, targets and the loss modules of ``model`` tell.
        part: Name of the network within ``model``; None if that is it.
        penalty: How activity was shaped in training, for the headings; empty if that is not known.
        saving: Whether to try what would save the most next.
        held_out: Gives the batches that margins of early exit are found on for that; those of the training if None.

    Raises:
        ValueError: If the folder holds files of such names that no run wrote, there are no test data, or it cannot be
            told what is scored.
        ConversionError: If the network cannot be exported.
    """
    run.claim(diagnosed, html, saving)
    datamodule.prepare_data()
    datamodule.setup("test")
    loss = loss_of_modules(model)
    whole = part_of(model, part)
    dnn: nn.Module | None = whole
    network: nn.Module
    if spikes_already(whole):
        dnn, network = _as_they_are(whole)
    else:
        batches = islice(datamodule.train_dataloader(), calibration_batches)
        network = to_snntorch(whole, [unpack(batch)[0] for batch in batches], **options)
    trained = network
    if isinstance(network, SpikingNetwork) and not network.conversion.get("is_deployed", True):
        network = deploy(network)
    written = _save(run, network)
    if isinstance(network, SpikingNetwork) and dnn is whole and options.get("threshold") == "auto":
        chosen = {name: network.conversion[name] for name in CHOSEN}
        say(f"threshold='auto' chose {', '.join(f'{name}={value!r}' for name, value in chosen.items())}")
    data = [unpack(batch) for batch in _first(_only(datamodule.test_dataloader()), limit_batches)]
    if isinstance(trained, SpikingNetwork) and dnn is not whole and data:
        require_around(whole, trained, data[0][0])
    how: dict[str, Any] = {"steps": steps, "table": table, "metric": metric, "loss": loss, "readout": readout}
    about = About(_network_name(dnn or network), type(datamodule).__name__, penalty, str(date.today()), __version__)
    how["count_zero_weights"] = count_zero_weights
    result = replace(report(dnn, network, data, **how, input_events=input_events), about=about)
    written += _write(run, result)
    diagnosis = None
    if diagnosed and dnn is not None and isinstance(network, SpikingNetwork):
        diagnosis = diagnose(dnn, network, data)
        written += _write(run, diagnosis)
    elif diagnosed:
        say("No diagnosis: there is no DNN to compare the network with")
    if saving and isinstance(network, SpikingNetwork):
        kept = islice((held_out or datamodule.train_dataloader)(), calibration_batches)
        inputs = [unpack(batch)[0] for batch in kept]
        written += _write(run, savings(network, data, inputs, table=table, metric=metric, loss=loss))
    elif saving:
        say("No savings: what spikes already is not ours to change")
    if html:
        written = [*_write_page(run, network, data, result, diagnosis, steps, recipe), *written]
    say(f"Written to {run.folder}: {', '.join(written)}")
    return result


def _network_name(model: nn.Module) -> str:
    """Name the network that a module is, or is around as the classifiers of this package are."""
    return type(model.network if isinstance(getattr(model, "network", None), nn.Module) else model).__name__


def _as_they_are(whole: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """Give the DNN, if it is there, and the network of what spikes already."""
    exported, dnn = exported_within(whole), getattr(whole, "dnn", None)
    if exported is None:
        return None, whole
    return dnn if isinstance(dnn, nn.Module) else None, exported


def _save(run: Run, network: nn.Module) -> list[str]:
    """Write an exported network, and give the names of its files; others have none."""
    if not isinstance(network, SpikingNetwork):
        run.clear()
        return []
    return run.save_network(network) + _where_it_can("No NIR file", lambda: run.save_nir(network))


def _only(loader: Any) -> Any:
    """Take the first of several loaders, and say so."""
    loaders = list(loader.values()) if isinstance(loader, dict) else loader
    if isinstance(loaders, (list, tuple)) and loaders and all(isinstance(one, DataLoader) for one in loaders):
        if len(loaders) > 1:
            say(f"Measured on the first of {len(loaders)} test loaders")
        return loaders[0]
    return loader


def _first(loader: Any, limit: float | None) -> Iterable[Any]:
    """Take a number (int) or a share (float) of a loader's batches, the first ones; at least one."""
    if isinstance(limit, float) and limit < 1.0 and isinstance(loader, Sized):
        limit = max(1, int(limit * len(loader)))
    batches: Iterable[Any] = islice(loader, limit if isinstance(limit, int) else None)
    return batches


def _write_page(
    run: Run,
    network: nn.Module,
    data: list[Any],
    result: Report,
    diagnosis: Diagnosis | None,
    steps: Sequence[int],
    recipe: str | os.PathLike[str] | None,
) -> list[str]:
    """Write the page, and what a later one is made of."""
    raster, given, written = None, None, []
    if isinstance(network, SpikingNetwork):
        # Those of a network that reads a dimension of time are those of the data.
        longest = (
            network.timesteps if network.time_dim is not None else max(min(max(steps), _LONGEST), network.timesteps)
        )
        inputs, targets = next(batch for batch in data if len(batch[0]))
        are_classes = result.is_accuracy and not targets.is_floating_point() and targets.numel() == len(targets)
        raster = record(network, inputs, targets if are_classes else None, timesteps=longest)
        written = run.save(raster)
        given = {**network.conversion, "timesteps": network.timesteps}
    settings = settings_of(given, None)
    if recipe is not None and os.path.isfile(recipe):
        written += run.save_recipe(recipe)
        try:
            settings = settings_of(given, run.path(RECIPE))
        except ValueError as error:  # no reason to end a training so
            say(f"No settings of the training on the page: {error}")
    return [*run.save_page(Contents(run.title, result, raster, diagnosis, settings)), *written]


def _write(run: Run, result: Result) -> list[str]:
    """Print a result and write its files; give their names."""
    written = run.save(result)
    result.print()
    return written + _where_it_can("No picture", lambda: run.draw(result))


def _where_it_can(otherwise: str, write: Callable[[], list[str]]) -> list[str]:
    try:
        return write()
    except (ImportError, ConversionError) as error:
        say(f"{otherwise}: {error}")
        return []
