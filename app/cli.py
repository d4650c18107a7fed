"""The console command `lrdiff`: finds the verb, runs it, turns errors into messages and exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from dataclasses import dataclass

from lrdiff import __version__
from lrdiff.errors import Cancelled, ConfigError, LrdiffError

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


@dataclass(frozen=True, slots=True)
class Verb:
    """A subcommand.

    Attributes:
        module: Where its `main(arguments) -> exit code` is; imported only when the verb is used.
        usage: What follows the verb.
        summary: One line for the help.
    """

    module: str
    usage: str
    summary: str


VERBS: dict[str, Verb] = {
    "demo": Verb("app.commands.demo", "", "train on a shipped subject, draw it, and measure how like it came out"),
    "train": Verb("app.commands.train", "METHOD --data.images DIR", "teach a base model your own images"),
    "compare": Verb("app.commands.compare", "--adapter NAME... [flags]", "train several adapters and measure them"),
    "generate": Verb("app.commands.generate", "--prompt TEXT", "draw images with a base model and adapters"),
    "app": Verb("app.commands.page", "", "open the web page: train, watch, generate"),
    "runs": Verb("app.commands.runs", "list | show | stop | ...", "look at runs; stop, resume, compare or delete them"),
    "verify": Verb("app.commands.verify", "FILE... [--key ID]", "judge whether pictures carry a mark"),
    "watermark": Verb("app.commands.watermark", "fuse | attack | keys", "publish a mark, attack it, keep its keys"),
    "sla": Verb("app.commands.sla", "map", "see which blocks of an attention layer matter, before sparse fine-tuning"),
    "triplane": Verb("app.commands.triplane", "import | render | mesh", "take in a generator of 3D heads, show a head"),
    "parameters": Verb("app.commands.parameters", "IMAGE.png", "read how an image was made out of the image"),
    "doctor": Verb("app.commands.doctor", "", "say what this machine has, and what to install"),
    "embedded": Verb("app.commands.embedded", "list | make NAME", "list the shipped models, or make one again"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `lrdiff`; those of this process when left out.

    Returns:
        The exit code: 0 done (also a run that was stopped), 2 something the user can put right, 130 interrupted,
        141 when the reader of the output went away. Faults of the program raise, so that Python prints the traceback
        and exits with 1.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except Cancelled as error:
        sys.stderr.write(f"{error}\n")
        return INTERRUPTED
    except LrdiffError as error:
        sys.stderr.write(f"{error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere instead of into a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as stop:
        # tyro prints its help and leaves this way.
        return stop.code if isinstance(stop.code, int) else 0


def _run(words: list[str]) -> int:
    if not words:
        sys.stderr.write(overview())
        return USER_ERROR
    name, rest = words[0], words[1:]
    if name in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if name in ("-V", "--version"):
        print(f"lrdiff {__version__}")
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(VERBS)}"
        raise ConfigError(f"unknown command {name!r}; {hint}")
    return importlib.import_module(VERBS[name].module).main(rest)


def overview() -> str:
    """Return the top-level help."""
    commands = [f"{name} {verb.usage}".rstrip() for name, verb in VERBS.items()]
    width = max(map(len, commands))
    lines = [f"  {text:<{width}}  {verb.summary}" for text, verb in zip(commands, VERBS.values(), strict=True)]
    return "\n".join(
        [
            "usage: lrdiff COMMAND ...",
            "",
            "Customize diffusion models with low-rank methods: train, generate, verify.",
            "",
            *lines,
            "",
            "  lrdiff COMMAND --help lists the settings of a command; lrdiff --version prints the version.",
            "",
            "first steps:",
            '  lrdiff train tensor-lora --data.images my-photos --data.prompt "a photo of sks mug" --out runs/mug',
            '  lrdiff generate --adapter runs/mug:1 --prompt "a photo of sks mug on grass" --count 4 --out images',
            "",
            "Exit code: 0 done, 2 something you can put right (one message says what), 1 a fault in lrdiff.",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
