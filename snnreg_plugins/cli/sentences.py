"""What went wrong, in a sentence."""

from __future__ import annotations

import re

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
_FORMS = ("Not a valid subclass of ", "Subclass types expect one of:", "a class path (str)", "a dict with")
_KNOWN = ("Problem with given class_path ", "Expected a dot import path string: ")
# A list of callbacks may also be one, of any class; what that lacks is not what is wrong.
_ONE_CALLBACK = re.compile(r"\n *- Problem with given class_path 'lightning\.Callback':\n[^\n]*")
# Numbers in quotes are texts, which the parser shows without them.
_QUOTED = (
    re.compile(r"Expected a int\b.* value: '?[-+]?\d+'?$"),
    re.compile(r"Expected a float\b.* value: '?[-+]?[\d.]+(?:e[-+]?\d+)?'?$"),
    re.compile(r"Expected a bool\b.* value: '?(?:true|false)'?$"),
)
_LONGEST = 300


def in_one_sentence(message: str) -> str:
    r"""Tell what a parser says of a value, without the types that it tried in vain.

    Args:
        message: Of jsonargparse, in lines.

    Example:
        >>> reasons = "Errors:\n  - Expected a <class 'int'>\n  - Expected a <class 'NoneType'>"
        >>> in_one_sentence(f'Parser key "trainer.max_epochs":\n{reasons}\nGiven value: two')
        'Parser key "trainer.max_epochs": Expected a int. Given value: two'
    """
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", _ONE_CALLBACK.sub("", message))
    plain = plain.replace("Expected a typing.Literal", "Expected one of ")
    lines = [line.strip().removeprefix("- ") for line in plain.splitlines()]
    tried = (*_TRIED, *_FORMS) if any(line.startswith(_KNOWN) for line in lines) else _TRIED
    told = dict.fromkeys(line for line in lines if line and not line.startswith(tried))  # once each
    cut = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in told]
    sentence = "".join(line + (" " if line.endswith(":") else ". ") for line in cut).strip().removesuffix(".")
    quoted = any(pattern.search(sentence) for pattern in _QUOTED)
    return f"{sentence}, in quotes, which make it a text; leave them out" if quoted else sentence
