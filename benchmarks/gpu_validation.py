"""python benchmarks/gpu_validation.py: all checks that need a GPU, as named steps, cheapest and most telling first.

To begin it needs torch, timm, onnx and numpy. A step that needs more is `not run`, and its reason names the package.
Each step has a process and a time limit of its own. NAME.json and summary.md in the output folder are replaced whenever
something is known; the same command again continues with the steps that have not run.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()  # importing torch takes seconds of the limit too
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks import environment
from benchmarks.gpu import process
from benchmarks.gpu.catalogue import NAMES, STEPS
from benchmarks.gpu.goals import judge_goals, passed
from benchmarks.gpu.step import Run, Step
from benchmarks.gpu.summary import summary
from benchmarks.results import RESULTS, log
from dpt_deploy.cli import exit_on_error
from dpt_deploy.core.errors import BackendError, BadInput
from dpt_deploy.core.files import write_json, write_text

PROG = "python benchmarks/gpu_validation.py"
WORK = Path(__file__).resolve().parents[1] / "engines/bench-gpu"
LEAST = 45.0  # [s] with less, no step starts: it would import, compile and be killed
ATTEMPTS = 2  # of a step that does not run to its end
QUICK = 30.0  # [s] an attempt that ends earlier does not count
DRY_LIMIT = 120.0  # [s] of a step in a rehearsal


def parser() -> argparse.ArgumentParser:
    """The command line. It uses the standard library, because a bare machine lacks the packages of the others."""
    found = argparse.ArgumentParser(PROG, description=__doc__.partition("\n\n")[2], allow_abbrev=False,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="bundle for the steps on engines "
                       "(default: ViT-B at 384 with random weights, exported to engines/bench-vitb)")
    found.add_argument("--steps", metavar="NAME,...", help="only these steps, or those whose name begins so (default: "
                       "all)")
    found.add_argument("--list", action="store_true", help="print the steps and exit")
    found.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the result files (default: "
                       "benchmarks/results)")
    found.add_argument("--name", default="gpu_validation", help="name of the result file: NAME.json (default: "
                       "gpu_validation)")
    found.add_argument("--work", type=Path, default=WORK, metavar="FOLDER", help="folder for exported graphs (default: "
                       "engines/bench-gpu)")
    found.add_argument("--max-seconds", type=float, default=540.0, metavar="S", help="time limit [s]: no step starts "
                       "after it, and none runs longer (default: 540)")
    found.add_argument("--rounds", type=int, default=50, metavar="N", help="timed rounds (default: 50)")
    found.add_argument("--again", action="store_true", help="repeat steps that have run")
    found.add_argument("--dry-run", action="store_true", help="walk through all steps on the CPU with tiny sizes; no "
                       "figure is a measurement")
    found.add_argument("--json", action="store_true", help="print the result as JSON instead of the summary")
    return found


def main(arguments: list[str], begun: float | None = None) -> int:
    """Exit status 0 if every chosen step ran and what was judged passed, else 1.

    `begun` is when the command began [s of `time.perf_counter`]; default: now.

    Raises:
        BackendError: A chosen step needs a GPU, and none is visible.
        BadInput: An option is wrong, or the output folder holds the other kind of result.
    """
    if any(one.partition("=")[0] == "--seconds" for one in arguments):
        raise BadInput("--seconds: the option is now --max-seconds.")
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{step.name:20} {step.limit:4.0f} s  {step.about}" for step in STEPS))
        return 0
    chosen = choose(options.steps)
    if options.dry_run and options.out is None:
        raise BadInput("--dry-run: expected --out FOLDER, so that no rehearsal lies among the results.")
    if options.max_seconds <= 0 or options.rounds < 1:
        raise BadInput("--max-seconds and --rounds: expected positive numbers.")
    file = (options.out or RESULTS) / f"{options.name}.json"
    result = earlier(file, options.dry_run)
    process.preload()
    if not options.dry_run and any(step.gpu for step in chosen) and process.gpu_name() is None:
        raise BackendError("no GPU is visible to PyTorch: the machine has none, or the NVIDIA driver or a torch built "
                           "for CUDA is not installed. Run this command on a machine with an NVIDIA GPU, or rehearse "
                           "it with --dry-run --out FOLDER.")
    if options.bundle is not None and not (options.bundle / "manifest.json").is_file():
        raise BadInput(f"{options.bundle}: expected a bundle, which is a folder, but there is no manifest.json in it. "
                       "Create a bundle with: python -m dpt_deploy.export best_model.pth")
    result |= {"command": shlex.join([*PROG.split(), *arguments]), "machine": environment.record()}
    with tempfile.TemporaryDirectory() as scratch:
        # Graphs of another commit are not timed under this one.
        work = Path(scratch) if options.dry_run else options.work / str(result["machine"]["commit"])[:12]
        run_all(chosen, options, work, result, file, time.perf_counter() if begun is None else begun)
    print(json.dumps(result, indent=2) if options.json else summary(result))
    log(f"written: {file}, {file.parent / 'summary.md'}")
    return 0 if passed(result["steps"], tuple(step.name for step in chosen)) else 1


def choose(names: str | None) -> list[Step]:
    """The steps whose names, or the beginnings of them up to a hyphen, are given. Raises `BadInput`."""
    if names is None:
        return list(STEPS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted or [""]:
        if not any(_matches(step, name) for step in STEPS):
            raise BadInput(f"--steps: expected names among {', '.join(NAMES)}, received {name!r}.")
    return [step for step in STEPS if any(_matches(step, name) for name in wanted)]


def _matches(step: Step, name: str) -> bool:
    return step.name == name or (name not in NAMES and step.name.startswith(f"{name}-"))


def earlier(file: Path, dry: bool) -> dict[str, Any]:
    """The result so far, or an empty one. Raises `BadInput` if it is damaged or of the other kind."""
    mark = {"dry_run": True} if dry else {}
    if not file.exists():
        return mark | {"steps": {}, "goals": judge_goals({})}
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        steps, was_dry = dict(result["steps"]), bool(result.get("dry_run"))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: expected a result of this command, received something else. Choose another --out or "
                       "--name.") from error
    if was_dry != dry:
        kinds = ("measurements", "a rehearsal")
        raise BadInput(f"{file} holds {kinds[was_dry]}, and this run is {kinds[dry]}. Choose another --out or --name.")
    return mark | {"steps": steps, "goals": judge_goals(steps)}


def run_all(
    chosen: list[Step], options: argparse.Namespace, work: Path, result: dict[str, Any], file: Path, begun: float
) -> None:
    """Run the steps that have not run, within the time limit; `result` and the files are kept up to date.

    Steps that were tried before come last, and are tried at most `ATTEMPTS` times, so that one that never ends does not
    keep the others from running. A step begins only if it has its whole time.
    """
    steps = result["steps"]

    def keep(name: str, found: dict[str, Any]) -> None:
        before = steps.get(name, {})
        worse = _worth(found) < _worth(before)
        retry = {key: found[key] for key in ("status", "reason") if key in found}
        steps[name] = before | {"retry": retry, "attempts": found.get("attempts", 0)} if worse else found
        result["steps"] = {known: steps[known] for known in NAMES if known in steps}
        result["goals"] = judge_goals(steps)
        write_json(file, result)
        write_text(file.parent / "summary.md", summary(result))

    for step in sorted(chosen, key=lambda step: steps.get(step.name, {}).get("attempts", 0)):
        attempts = steps.get(step.name, {}).get("attempts", 0)
        if steps.get(step.name, {}).get("status") == "ran" and not options.again:
            log(f"kept     {step.name}")
            continue
        if attempts >= ATTEMPTS and not options.again:
            log(f"left     {step.name}: tried {attempts} times; --again tries it once more")
            continue
        left = options.max_seconds - (time.perf_counter() - begun)
        needed = min(LEAST, step.limit)
        if not options.dry_run:
            needed = max(needed, min(step.limit, 0.9 * options.max_seconds))
        if left < needed:
            if step.name not in steps:
                keep(step.name, {"status": "not run", "reason": f"no time left of {options.max_seconds:.0f} s; run the "
                                 "same command again"})
            continue
        log(f"step     {step.name}")
        limit = min(DRY_LIMIT if options.dry_run else step.limit, left)
        run = Run(options.dry_run, limit, work, options.bundle, options.rounds)
        found = process.run_step(step, run, lambda partial, name=step.name, tried=attempts + 1: keep(
            name, partial | {"attempts": tried}))
        quick = found.get("seconds", limit) < QUICK  # such as a missing package, which may be there next time
        keep(step.name, found | {"attempts": attempts + (not quick), "commit": result["machine"]["commit"],
                                 "date": result["machine"]["date"]})
        log(f"         {found['status']}" + (f": {found['reason']}" if found.get("reason") else ""))


def _worth(found: dict[str, Any]) -> tuple[bool, int]:
    """What orders two results of one step: whether it ran to its end, and how many rows ran."""
    return found.get("status") == "ran", sum(row.get("status") == "ran" for row in found.get("rows", []))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the step's processes too
    with exit_on_error():
        sys.exit(main(sys.argv[1:], BEGUN))
