"""The parser of subcommands that need no Lightning, and what all parsers say."""

from __future__ import annotations

import re
from typing import NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override

from snnreg_plugins.cli.sentences import in_one_sentence


class InOneSentence(ArgumentParser):
    """A parser that tells in a sentence what is wrong, and where all options are listed."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within, whose caller goes on
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        known = re.findall(r"(?<!\w)--[\w.-]+", parser.format_help())
        sentence = in_one_sentence(message, known).removesuffix(".")
        self.exit(2, f"error: {sentence}{'' if sentence.endswith('?') else '.'}\nAll options: {program} --help\n")
        raise AssertionError("exit() has returned")


class Parser(InOneSentence):
    """The parser of a subcommand of :data:`~snnreg_plugins.cli.subcommands.OTHERS`."""
