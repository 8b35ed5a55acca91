"""What went wrong, in a sentence: the cause first, what was given, and what was meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from typing import get_type_hints

# What a parser tells about the types that it tried.
_TRIED = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "Expected a NoneType",
    "Given value type: ",
    "Given value: NestedArg(",
)
# How a class may be written; of no interest where it is known what is wrong with one.
_FORMS = (
    "Not a valid subclass of ",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with",
    "Import path ",
)
# That a value is no file either, where something else may be meant.
_NO_FILE = "Expected a path but "
_KNOWN = ("Problem with given class_path ", "Expected a dot import path string: ")
# A list of callbacks may also be one, of any class; what that lacks is not what is wrong.
_ONE_CALLBACK = re.compile(r"\n *- Problem with given class_path 'lightning\.Callback':\n[^\n]*")
# Numbers in quotes are texts, which the parser shows without them.
_QUOTED = {
    "int": re.compile(r"'?[-+]?\d+'?"),
    "float": re.compile(r"'?[-+]?[\d.]+(?:e[-+]?\d+)?'?"),
    "bool": re.compile(r"'?(?:true|false)'?"),
}
_TYPES = {
    "int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list, such as [1, 2]"
}  # fmt: skip
_LONGEST = 300
# What an option may be given.
_AS_IN = {
    "config": "recipes/digits_lenet_expected_rate.yaml (`snnreg recipes` lists them)",
    "ckpt_path": "runs/digits_lenet_expected_rate/dnn.ckpt",
    "recipe": "recipes/digits_lenet_none.yaml (`snnreg recipes` lists them)",
}
# Classes that stand for any of their kind, with one to name in their place.
_ANY = {"Optimizer": "optimizer=Adam", "LRScheduler": "lr_scheduler=StepLR"}
# Names that go without their module in a recipe.
_HOMES = (
    "snnreg_plugins.callbacks", "snnreg_plugins.data", "snnreg_plugins.modules", "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers", "torch.optim", "torch.optim.lr_scheduler",
)  # fmt: skip


def in_one_sentence(message: str, options: Iterable[str] = ()) -> str:
    r"""Tell what a parser says of a value, without the types that it tried in vain.

    Args:
        message: Of jsonargparse, in lines.
        options: The options that there are, to find the one that was meant.

    Example:
        >>> reasons = "Errors:\n  - Expected a <class 'int'>\n  - Expected a <class 'NoneType'>"
        >>> in_one_sentence(f'Parser key "trainer.max_epochs":\n{reasons}\nGiven value: two')
        'Expected `trainer.max_epochs` to be an integer, but got two'
        >>> in_one_sentence("unrecognized arguments: --trainer.max_epocs=3", ["--trainer.max_epochs", "--data"])
        'There is no option `--trainer.max_epocs`. Did you mean `--trainer.max_epochs`?'
    """
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", _ONE_CALLBACK.sub("", message))
    plain = plain.replace("Expected a typing.Literal", "Expected one of ")
    lines = [line.strip().removeprefix("- ") for line in plain.splitlines()]
    tried = (*_TRIED, *_FORMS) if any(line.startswith(_KNOWN) for line in lines) else _TRIED
    if any(line.startswith(("Expected a ", *_KNOWN)) and not line.startswith(_NO_FILE) for line in lines):
        tried = (*tried, _NO_FILE)
    told = dict.fromkeys(line for line in lines if line and not line.startswith(tried))  # once each
    whole = "".join(line + (" " if line.endswith(":") else ". ") for line in told).strip().removesuffix(".")
    for known in (_of_an_option, _of_a_missing_one, _of_an_argument, _of_a_class, _of_a_value):
        sentence = known(whole, list(options))
        if sentence is not None:
            return sentence
    return whole if len(whole) <= _LONGEST else f"{whole[:_LONGEST]}..."


def meant(word: str, names: Iterable[str]) -> str:
    """Ask whether a name was meant that is like a word, in a sentence with a blank before it; nothing if none is.

    Example:
        >>> meant("penalti", ["penalty", "layers"])
        ' Did you mean `penalty`?'
    """
    close = get_close_matches(word, list(names), n=1, cutoff=0.7)
    return f" Did you mean `{close[0]}`?" if close else ""


def as_in(option: str) -> str:
    """Give an example of an option with its value.

    Example:
        >>> as_in("--ckpt_path"), as_in("--steps")
        ('--ckpt_path runs/digits_lenet_expected_rate/dnn.ckpt', '--steps VALUE')
    """
    return f"{option} {_AS_IN.get(option.lstrip('-'), 'VALUE')}"


def _of_an_option(whole: str, options: Sequence[str]) -> str | None:
    """Of an option or a key that there is none of."""
    if found := re.match(r"unrecognized arguments: (.*)", whole):
        words = found[1].split()
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if option is None:
            return f"There is one word too many: {words[0][:100]!r}. A value stands behind its option, as --name value"
        return f"There is no option `{option}`.{meant(option, options)}"
    if found := re.match(r"ambiguous option: (--[\w.-]+)\S* could match (.*)", whole):
        return f"There is no option `{found[1]}`. What begins like it: {found[2].removesuffix('.')}"
    if found := re.search(r"Subcommand '(\w+)' does not accept option '([\w.]+)'", whole):
        key = found[2]
        known = [option.removeprefix("--") for option in options]
        parts = key.split(".")
        like = meant(key, known) or meant(parts[0], {name.partition(".")[0] for name in known} - {parts[0]})
        return f"`{found[1]}` takes no `{key}`.{like}"
    return None


def _of_a_missing_one(whole: str, options: Sequence[str]) -> str | None:
    """Of what has to be given."""
    if found := re.match(r"the following arguments are required: (\S+)", whole):
        name = found[1].rstrip(",").rpartition(".")[2]
        if name == "model":
            return (
                "Expected a recipe, as in --config recipes/digits_lenet_expected_rate.yaml (`snnreg recipes` lists "
                "them), or a --model, but got neither"
            )
        option = f"--{name}"
        kind = "option" if option in options else "argument"
        like = f". Add {as_in(option)}" if name in _AS_IN else ""
        return f"Expected {kind} `{name}` to be given, but it is missing{like}"
    if found := re.match(r"argument (?:\S+/)?(--?[\w.+-]+): expected (?:one|at least one) argument", whole):
        return f"Expected a value behind `{found[1]}`, but there is none. Give one, as in {as_in(found[1])}"
    if found := re.match(r'expected "subcommand" to be one of \{([\w,]+)\}', whole):
        return f"Expected a subcommand before all options, one of {found[1].replace(',', ', ')}, as in snnreg fit"
    return None


def _of_an_argument(whole: str, options: Sequence[str]) -> str | None:
    """Of an argument that a class does not take."""
    found = re.search(r"Problem with given class_path '([\w.]+)': Option '([\w.]+)' is not accepted", whole)
    if found is None:
        return None
    path, name = found.groups()
    known, kind = arguments_of(path), path.rpartition(".")[2]
    if kind in _ANY:
        option = _ANY[kind].partition("=")[0]
        return (
            f"{kind} stands for any class of its kind, and takes no argument `{name}`. Name a class in front, as in "
            f"--{_ANY[kind]} --{option}.{name}=VALUE; that of the model is --model.init_args.{option}.init_args.{name}"
        )
    like = meant(name, known) or (f" It takes {', '.join(known)}." if known else "")
    return f"{kind} takes no argument `{name}`.{like}"


def _of_a_class(whole: str, options: Sequence[str]) -> str | None:
    """Of a class that there is none of."""
    if found := re.search(
        r"Problem with given class_path '([\w.]+)': (module '([\w.]+)' has no attribute '(\w+)')", whole
    ):
        like = meant(found[4], dir(sys.modules.get(found[3]))) or " Name a class that it has."
        return f"There is no class {found[1]!r} for `{_key(whole)}`: {found[2]}.{like}"
    if found := re.search(r"Problem with given class_path '([\w.]+)': (No module named '[\w.]+')", whole):
        return f"There is no class {found[1]!r} for `{_key(whole)}`: {found[2]}, here or among the installed packages"
    if "Expected one of [" in whole:  # a choice, which may also be a class
        return None
    found = re.search(r"Expected a dot import path string: ([^\s.][^\s]*?)\.? ?(?:Given|Expected|$)", whole)
    if found is None or (_kind(whole) not in (None, "list") and not found[1][0].isupper()):  # a plain value does, too
        return None
    modules = [sys.modules[home] for home in _HOMES if home in sys.modules]
    known = [name for module in modules for name in getattr(module, "__all__", ())]
    key = _key(whole)
    of_key = f" for `{key}`" if key else ""
    if found[1] in known:
        return f"`{key}` takes no {found[1]!r}, which is a class of another kind. Name one of the kind that it takes"
    like = meant(found[1], known) or " Write its module too, as in my_module.Net."
    return f"There is no class {found[1]!r}{of_key}.{like}"


def _of_a_value(whole: str, options: Sequence[str]) -> str | None:
    """Of a value of another type, or of another choice."""
    key = _key(whole)
    if found := re.search(r"Import path does not correspond to a subclass of (\w+)\. Given value: (.+)", whole):
        network = " A plain network goes into one, as in --model=Classifier --model.network=my_module.Net."
        remedy = network if found[1] == "LightningModule" else " Name a class that derives from it."
        return f"Expected `{key}` to be a {found[1]}, but {found[2]} is none.{remedy}"
    got = re.findall(r"(?:Given|Got) value: (.+?)(?=\. (?:Given|Got) value: |$)", whole)
    if whole.endswith(("Given value:", "Got value:")):
        got = ["nothing"]
    if key is None or not got:
        return None
    value = next((one for one in reversed(got) if not one.startswith("Namespace(")), got[-1])
    value = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
    if listed := re.findall(r"Expected one of \[([^]]*)\]", whole):
        choices = list(dict.fromkeys(choice.strip(" '") for each in listed for choice in each.split(",")))
        return f"Expected `{key}` to be one of {', '.join(choices)}, but got {value}.{meant(value, choices)}"
    kind = _kind(whole)
    if kind is None:
        return None
    quoted = kind in _QUOTED and _QUOTED[kind].fullmatch(value) is not None
    remedy = ", in quotes, which make it a text; leave them out" if quoted else ""
    return f"Expected `{key}` to be {_TYPES[kind]}, but got {value}{remedy}"


def _kind(whole: str) -> str | None:
    """Give the plain type that a value was expected to be of; the first that is named."""
    found = re.findall(r"[:.] Expected a (\w+)\b(?!\.\w)", whole)
    return next((kind for kind in found if kind in _TYPES), None)


def _key(whole: str) -> str | None:
    """Give the key that a message is about: the innermost one, which is named last."""
    found = re.findall(r'Parser key "([^"]+)"', whole)
    return found[-1] if found else None


def arguments_of(path: str) -> list[str]:
    """List the arguments of a class by its path; none if that cannot be told.

    Example:
        >>> arguments_of("snnreg_plugins.modules.LeNet")
        ['image_shape', 'num_classes', 'kernel_size']
    """
    home, _, name = path.rpartition(".")
    try:
        known = signature(getattr(import_module(home), name)).parameters
        names = [one for one, parameter in known.items() if parameter.kind is not Parameter.VAR_KEYWORD]
        if len(names) < len(known):  # the options of an export, which callbacks take as they are
            from snnreg_plugins.export.options import ExportOptions

            names += get_type_hints(ExportOptions)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
    return names
