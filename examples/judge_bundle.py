"""Judge a bundle from a script, for a CI that does not use pytest.

    python examples/judge_bundle.py engines/best_model

Runs every stage that can run on this machine against the reference outputs that the bundle carries. Writes nothing. The
exit status is 0 if the verdict is PASSED, else 1.
"""

import sys

from dpt_deploy import Bundle, judge
from dpt_deploy.cli import exit_on_error


def main(folder: str) -> int:
    report = judge(Bundle.open(folder)).report
    for stage in report.failed:
        for finding in stage.findings:  # data: finding.head, .metric, .value, .bound, .image
            print(f"{stage.name}: {finding}")
    for stage in report.not_run:
        print(f"not run: {stage.name}: {stage.detail}")
    print(report.verdict)
    return 0 if report.passed else 1  # a report has no truth value: ask .passed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/judge_bundle.py BUNDLE")
    with exit_on_error():
        sys.exit(main(sys.argv[1]))
