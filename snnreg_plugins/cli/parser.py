"""The parser of subcommands that need no Lightning, and what all parsers say."""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from typing_extensions import override

from snnreg_plugins.cli.sentences import in_one_sentence
from snnreg_plugins.cli.subcommands import TRAINING


class InOneSentence(ArgumentParser):
    """A parser that tells in a sentence what is wrong, and where all options are listed."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within, whose caller goes on
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        if " " not in program:  # of what a subcommand lacks, too
            program = " ".join([program, *[word for word in sys.argv[1:] if word in TRAINING][:1]])
        known = re.findall(r"(?<!\w)--[\w.-]+", parser.format_help())
        sentence = in_one_sentence(message, known).removesuffix(".")
        self.exit(2, f"error: {sentence}{'' if sentence.endswith('?') else '.'}\nAll options: {program} --help\n")
        raise AssertionError("exit() has returned")


class Parser(InOneSentence):
    """The parser of a subcommand of :data:`~snnreg_plugins.cli.subcommands.OTHERS`."""

    @override
    def parse_args(self, args: Any = None, *others: Any, **named: Any) -> Any:
        if any(word.startswith(("-c", "--config")) for word in args or ()):
            # Here, as it takes seconds, and reads files that --help does without.
            from snnreg_plugins.cli.recipes import require_readable

            require_readable(args)
        return super().parse_args(args, *others, **named)
