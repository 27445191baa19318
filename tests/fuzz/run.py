"""Read mutations of one target in a process of its own: `python -m tests.fuzz.run TARGET COUNT SEED FOLDER`.

Prints JSON: the exceptions that are not a `DptError`, the hangs, and the growth of the resident memory. The file that
is read is FOLDER/case.SUFFIX, which is kept, so that a crash of the process can be looked into.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.core.errors import DptError
from tests.fuzz.targets import MB, TARGETS

LIMIT = 20.0
"""The most processor time that a case may take [s]; it needs some milliseconds."""
WAIT = 300.0
"""The longest that a case may take on the clock [s]. A busy machine may give the process little of its time."""
ADDRESS_SPACE = 6144 * MB
"""How much address space a case may take, so that a failure of this test does not exhaust the machine."""


class Hang(BaseException):
    """A case took too long."""


def peak() -> int:
    """The largest resident memory of this process so far [bytes]."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no VmHWM in /proc/self/status")


def _interrupt(_signal: int, _frame: object) -> None:
    raise Hang


def run(name: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read `count` mutations of a target. The same seed gives the same mutations."""
    target = TARGETS[name]
    files = target.seeds(folder)
    for path in files:
        target.read(path)  # a seed that is refused would make the test worthless
    data = [path.read_bytes() for path in files]
    signal.signal(signal.SIGPROF, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ADDRESS_SPACE, resource.RLIM_INFINITY))
    before, failures, outcomes = peak(), [], collections.Counter()
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        which = int(rng.integers(len(files)))
        case = folder / f"case{files[which].suffix}"
        case.write_bytes(target.change(data[which], rng))
        (folder / "last").write_text(f"{index}")
        faulthandler.dump_traceback_later(2 * WAIT, exit=True)  # for a hang in native code
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        signal.setitimer(signal.ITIMER_REAL, WAIT)
        try:
            target.read(case)
            outcomes["read"] += 1
        except DptError as error:
            outcomes[type(error).__name__] += 1
            if len(str(error)) > 4000 or "Traceback" in str(error):
                failures.append({"case": index, "error": f"a message of {len(str(error))} characters: {error!s:.300}"})
        except Hang:
            failures.append({"case": index, "error": f"took more than {LIMIT:g} s of processor time, or {WAIT:g} s"})
        except BaseException:
            failures.append({"case": index, "error": traceback.format_exc()})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
    return {"failures": failures, "outcomes": outcomes, "growth": peak() - before}


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
