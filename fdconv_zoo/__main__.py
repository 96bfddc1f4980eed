"""The command line of the zoo: `python -m fdconv_zoo`, installed as `fdconv-zoo`."""

import os
import sys
from collections.abc import Sequence

from fdconv_zoo.commands import build_parser
from fdconv_zoo.data import DataError
from fdconv_zoo.index import EntryError
from fdconv_zoo.training.errors import TrainingError
from fdconv_zoo.weights import WeightsError
from fdconv_zoo.weights.hub_errors import HubError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command; what the user can mend is one line on stderr, and exits with 1."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (DataError, EntryError, HubError, TrainingError, WeightsError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
