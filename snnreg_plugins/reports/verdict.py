"""Whether a spiking network pays, in sentences: what it spends beside its DNN, and at which score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from snnreg_plugins._text import in_joules, in_short, over
from snnreg_plugins.reports.priced import ModelReport

if TYPE_CHECKING:
    from snnreg_plugins.reports.report import Report

# A score this far below the DNN's is told as a loss.
_POINT = 0.01


def verdict(report: Report) -> tuple[str, ...]:
    """Say whether the network pays: one sentence, and what else has to be known with it.

    Args:
        report: What was measured.
    """
    return (headline(report), *_beside(report))


def headline(report: Report) -> str:
    """Say in one sentence what the network scores and spends, beside the DNN if there is one."""
    at = f"At T = {report.timesteps} and {_score(report)} the spiking network spends {_spent(report)}"
    share = _share(report)
    return f"{at}; {share}." if share else f"{at}."


def ratio(value: float) -> str:
    """Write how many times the DNN's a cost is, to be followed by the DNN.

    Example:
        >>> [ratio(value) for value in (0.0312, 0.5816, 1.0, 2.061, 31.4)]
        ['0.031 of', '0.58 of', 'as much as', '2.06 times', '31.4 times']
    """
    if value >= 1.005:
        return f"{value:.2f} times" if value < 10 else f"{value:,.3g} times" if value < 100 else f"{value:,.0f} times"
    return "as much as" if value >= 0.995 else f"{value:.2f} of" if value >= 0.1 else f"{value:.2g} of"


def written(value: float, unit: str) -> str:
    """Write a cost with its unit."""
    return in_joules(value) if unit == "J" else f"{in_short(value)} {unit}"


def compared(report: Report, model: ModelReport) -> dict[str, float]:
    """Give what the network costs by a model over what each DNN does, at the report's T; empty where that is not known.

    What one of both has no price for makes them incomparable.
    """
    index = report.index
    spent = model.steps[index]
    if spent.unpriced:
        return {}
    found = {how: over(spent.total, dnn.total) for how, dnn in model.baselines(index).items() if not dnn.unpriced}
    return {how: value for how, value in found.items() if value is not None}


def hardest(report: Report, model: ModelReport) -> tuple[str, float] | None:
    """Give the DNN that spends the least by a model, and what the network spends over that; None if there is none."""
    found = compared(report, model)
    return max(found.items(), key=lambda one: one[1]) if found else None


def baseline(report: Report, model: ModelReport, how: str, timesteps: int | None = None) -> str:
    """Name a DNN that the network is put beside, at the report's T if no other one is told."""
    bits = model.bits(timesteps or report.timesteps)
    of = "" if bits is None else f" of {bits} bit{'s' if bits > 1 else ''}"
    if report.dnn is None:
        return f"a {how} DNN of the same layers" if bits is None else f"a {how} DNN{of} and the same layers"
    return f"the {how} DNN" if bits is None else f"a {how} DNN{of}"


def _score(report: Report) -> str:
    title = _lower(report)
    begins_with_a_vowel = title[0] in ("AEFHILMNORSX" if title.isupper() else "aeio")
    name = "" if report.is_accuracy else f"a{'n' if begins_with_a_vowel else ''} {title} of "
    beside = "" if report.dnn is None else f" (DNN {_short(report, report.dnn.score)})"
    return f"{name}{_short(report, report.at_timesteps().score)}{beside}"


def _lower(report: Report) -> str:
    title = report.score_title
    return title if title.isupper() else title[:1].lower() + title[1:]


def _short(report: Report, score: float) -> str:
    return f"{100 * score:.1f} %" if report.is_accuracy else report.write_score(score)


def _phrases(models: list[ModelReport]) -> dict[str, str]:
    """Say by which model, each in other words."""
    said = [model.phrase for model in models]
    return {
        model.name: f"{model.phrase} ({model.name})" if said.count(model.phrase) > 1 else model.phrase
        for model in models
    }


def _headed(report: Report) -> list[ModelReport]:
    """Give the models that the sentence is of: the first that is shown, and the first other one that tells more."""
    able = [model for model in report.shown_models if compared(report, model)]
    able = [model for model in able if model.bits(1) is None] or able
    first = able[:1]
    more = [model for model in able[1:] if model.steps[report.index].memory] or able[1:]
    return [*first, *more[:1]]


def _spent(report: Report) -> str:
    models = _headed(report)
    if not models:
        costs = [model for model in report.shown_models if model.has_all()] or [report.primary]
        phrases = _phrases(costs[:2])
        said = [f"{written(one.steps[report.index].total, one.unit)} {phrases[one.name]}" for one in costs[:2]]
        return f"{' and '.join(said)} per sample"
    phrases = _phrases(models)
    found = [found for model in models if (found := hardest(report, model))]
    said = [
        f"{ratio(value)} {baseline(report, model, how)} {phrases[model.name]}"
        for model, (how, value) in zip(models, found, strict=True)
    ]
    differ = len({value < 1 for _, value in found}) > 1
    return (", but " if differ else " and ").join(said)


def _share(report: Report) -> str:
    """Say which share of the cost is real-valued input's, or else where the most of it is."""
    models = _headed(report)[:2] or [report.primary]
    at_analog = [layer.name for layer in report.layers if layer.effective_macs]
    if not report.at_timesteps().sops:
        return "no spike reaches a synapse"
    shares = [_of_total(model, report.index, at_analog) for model in models]
    if at_analog and shares[0] is not None:
        first = next((layer.name for layer in report.layers if layer.sops is not None), None)
        where = "the analog first layer" if at_analog == [first] else f"real-valued input, at {_listed(at_analog)},"
        said = [
            f"{100 * share:.0f} % {'of it ' if index == 0 else ''}{_phrases(models)[model.name]}"
            for index, (model, share) in enumerate(zip(models, shares, strict=True))
            if share is not None
        ]
        return f"{where} is {said[0] if len(said) > 1 else f'{100 * shares[0]:.0f} % of it'}" + (
            f", {said[1]}" if len(said) > 1 else ""
        )
    most = max(models[0].layers, key=lambda layer: layer.spent.total, default=None)
    total = models[0].steps[report.index].total
    if most is None or not total:
        return ""
    return f"{100 * most.spent.total / total:.0f} % of it is at {most.name}"


def _of_total(model: ModelReport, index: int, names: list[str]) -> float | None:
    if not model.layers:
        return over(model.steps[index].macs, model.steps[index].total)
    return over(sum(layer.spent.total for layer in model.layers if layer.name in names), model.steps[index].total)


def _listed(names: list[str]) -> str:
    shown = names[:3]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if len(names) <= 3 else (
        f"{', '.join(shown)} and {len(names) - 3} more"
    )  # fmt: skip


def _beside(report: Report) -> Iterator[str]:
    """Say what else has to be known: the DNN of few bits, what is lost, and what the DNN is worth."""
    headed = _headed(report)
    for model in report.shown_models:
        found = hardest(report, model) if model.bits(1) is not None and model not in headed else None
        if found is not None:
            how, value = found
            yield f"It spends {ratio(value)} {baseline(report, model, how)}, {model.phrase} ({model.name})."
    dnn, step = report.dnn, report.at_timesteps()
    if dnn is None or not report.is_accuracy:
        return
    if not report.dnn_is_worth_it:
        yield (
            f"The DNN is right no more often than the most frequent answer is ({100 * (report.chance or 0):.1f} %): "
            "there is nothing yet that the spiking network could keep."
        )
    elif dnn.score - step.score > _POINT:
        close = report.within_a_point()
        where = "no T measured is within a point of it"
        if close is not None:
            model = report.primary
            beside = model.baselines(report.steps.index(close))
            spent = model.steps[report.steps.index(close)]
            where = f"T = {close.timesteps} is within a point of it"
            if beside and not spent.unpriced:
                how, cost = min(beside.items(), key=lambda one: one[1].total)
                where += (
                    f" and spends {ratio(spent.total / cost.total)} {baseline(report, model, how, close.timesteps)}"
                )
        yield f"It is {100 * (dnn.score - step.score):.1f} points below the DNN; {where}."
