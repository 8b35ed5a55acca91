"""Export a trained network, and write what it scores and spends to a run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from snnreg_plugins.export import ConversionError, to_snntorch
from snnreg_plugins.export.options import CHOSEN
from snnreg_plugins.reports.diagnose import diagnose
from snnreg_plugins.reports.diagnosis import Diagnosis
from snnreg_plugins.reports.measure import report
from snnreg_plugins.reports.raster import Raster, record
from snnreg_plugins.reports.report import Report
from snnreg_plugins.reports.result import Result
from snnreg_plugins.reports.run import RECIPE, Contents, Run, settings_of
from snnreg_plugins.spiking.network import SpikingNetwork

# Time steps of the spikes that the page shows; more are too many for its width.
_LONGEST = 64


def export_run(
    model: nn.Module,
    datamodule: Any,
    run: Run,
    *,
    options: Mapping[str, Any],
    steps: Sequence[int],
    calibration_batches: int,
    table: str,
    diagnosed: bool,
    html: bool,
    limit_batches: float | None = None,
    recipe: str | os.PathLike[str] | None = None,
) -> Report:
    """Export ``model``, write the files of a run, print its results and return the report.

    The network is written first, so that it is there whatever becomes of the rest.

    Args:
        model: The trained DNN or a LightningModule around it; or one whose ``network`` is a
            :class:`~snnreg_plugins.SpikingNetwork` already, exported from its ``dnn``, as that of a
            :class:`~snnreg_plugins.modules.SpikingClassifier`.
        datamodule: Gives ``train_dataloader`` and ``test_dataloader`` of (input, label) batches.
        run: Where to.
        options: Options of the export.
        steps: Numbers of time steps to report on.
        calibration_batches: Batches of training data to balance thresholds on.
        table: Energy per operation.
        diagnosed: Whether to tell what each layer loses.
        html: Whether to write the page.
        limit_batches: Test batches to measure on: a number (int), a share (float), or None for all.
        recipe: The settings of the training, a YAML file, for the page.

    Raises:
        ValueError: If the folder holds files of such names that no run wrote, or there are no test data.
        ConversionError: If the network cannot be exported.
    """
    run.claim(diagnosed, html)
    datamodule.prepare_data()
    datamodule.setup("test")
    dnn: Any = model
    network = getattr(model, "network", None)
    if isinstance(network, SpikingNetwork):
        dnn = dnn.dnn
    else:
        batches = zip(datamodule.train_dataloader(), range(calibration_batches), strict=False)
        network = to_snntorch(dnn, [batch[0] for batch, _ in batches], **options)
    written = run.save_network(network)
    written += _where_it_can("No NIR file", lambda: run.save_nir(network))
    if options.get("threshold") == "auto":
        chosen = {name: network.conversion[name] for name in CHOSEN}
        print(f"threshold='auto' chose {', '.join(f'{name}={value!r}' for name, value in chosen.items())}")
    loader = datamodule.test_dataloader()
    limit = limit_batches if isinstance(limit_batches, int) else int((limit_batches or 1.0) * len(loader))
    data = [batch for batch, _ in zip(loader, range(limit), strict=False)]
    result = report(dnn, network, data, steps=steps, table=table, progress=True)
    written += _write(run, result)
    diagnosis = diagnose(dnn, network, data) if diagnosed else None
    if diagnosis is not None:
        written += _write(run, diagnosis)
    run.forget(Raster)
    if html:
        written = [*_write_page(run, network, data, result, diagnosis, steps, recipe), *written]
    print(f"Written to {run.folder}: {', '.join(written)}")
    return result


def _write_page(
    run: Run,
    network: SpikingNetwork,
    data: list[Any],
    result: Report,
    diagnosis: Diagnosis | None,
    steps: Sequence[int],
    recipe: str | os.PathLike[str] | None,
) -> list[str]:
    """Write the page, and what a later one is made of."""
    longest = max(min(max(steps), _LONGEST), network.timesteps)
    inputs, targets = next(batch for batch in data if len(batch[0]))
    raster = record(network, inputs, targets, timesteps=longest)
    written = run.save(raster)
    given = {**network.conversion, "timesteps": network.timesteps}
    settings = settings_of(given, None)
    if recipe is not None and os.path.isfile(recipe):
        written += run.save_recipe(recipe)
        try:
            settings = settings_of(given, run.path(RECIPE))
        except ValueError as error:  # no reason to end a training so
            print(f"No settings of the training on the page: {error}")
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
        print(f"{otherwise}: {error}")
        return []
