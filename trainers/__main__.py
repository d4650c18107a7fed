"""`python -m trainers RUN_DIR [--resume]`: carry out the run a run directory describes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from lrdiff.errors import LrdiffError


def main(arguments: list[str]) -> int:
    """Execute one run.

    Returns:
        0 for finished or stopped, 2 for errors the user can put right, 130 after a second Ctrl-C.
    """
    resume = "--resume" in arguments
    paths = [word for word in arguments if word != "--resume"]
    if len(paths) != 1:
        sys.stderr.write("usage: python -m trainers RUN_DIR [--resume]\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        from trainers.rundir import open_run

        run = open_run(Path(paths[0]))
        from trainers.run import execute  # takes seconds to import

        execute(run, resume=resume)
    except LrdiffError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; resume with --resume if there is a checkpoint\n")
        return 130
    return 0


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    torch keeps the communication threads of a distributed module alive after their group was destroyed, and such a
    thread now and then aborts a process whose interpreter is being torn down: exit code -6 after a run that succeeded.
    One process of several therefore ends without the teardown; all files are closed and said by then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
