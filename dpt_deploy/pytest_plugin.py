"""pytest plugin: `pytest --dpt-bundle engines/best_model` adds a test for each stage and head of a bundle.

Without that option it does nothing. A stage that cannot run on this machine is skipped. The bundle is judged
once, when its first test runs, and is not modified.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .core.errors import DptError
    from .core.verdict import ParityReport, StageId


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--dpt-bundle` and `--dpt-budget`."""
    group = parser.getgroup("dpt-deploy", "parity of exported bundles")
    group.addoption("--dpt-bundle", action="append", default=[], metavar="FOLDER", dest="dpt_bundle",
                    help="add a test for each stage and head of this bundle; may be repeated")
    group.addoption("--dpt-budget", default=None, metavar="FILE", dest="dpt_budget",
                    help="JSON file with other parity budgets")


@pytest.hookimpl(tryfirst=True)  # before -k and -m select tests
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append the tests of the bundles."""
    for folder in config.getoption("dpt_bundle"):
        path = Path(config.invocation_params.dir, folder).resolve()
        collector = BundleCollector.from_parent(
            session, name=path.name, nodeid=path.name, folder=path, budget=config.getoption("dpt_budget")
        )
        items.extend(collector.collect())


class BundleCollector(pytest.Collector):
    """The tests of one bundle."""

    def __init__(self, folder: Path, budget: str | None, **fields: Any) -> None:
        super().__init__(**fields)
        self.folder = folder
        self.budget = Path(self.config.invocation_params.dir, budget) if budget else None

    def collect(self) -> Iterator[HeadTest]:
        """Yield a test for each stage and head, from the manifest."""
        from .core.errors import DptError

        try:
            from .core.bundle import Bundle
            from .parity.compare import load_budget
            from .parity.judge import stage_ids

            bundle = Bundle.open(self.folder)
            load_budget(self.budget)
            stages = stage_ids(bundle)
        except DptError as error:
            raise pytest.UsageError(f"--dpt-bundle: {error}") from error
        for stage in stages:
            for head in ("weights",) if stage.kind == "weights" else bundle.contract.heads:
                yield HeadTest.from_parent(self, name=f"{stage}::{head}", stage=stage, head=head)

    @functools.cached_property
    def report(self) -> ParityReport | DptError:
        """The verdict on the bundle, or the error that prevents one. Computed once."""
        from .core.bundle import Bundle
        from .core.errors import DptError
        from .parity import judge

        try:
            return judge(Bundle.open(self.folder), self.budget).report
        except DptError as error:
            return error


class HeadTest(pytest.Item):
    """Tests that one head of one stage is within budget."""

    parent: BundleCollector

    def __init__(self, stage: StageId, head: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.stage, self.head = stage, head

    def runtest(self) -> None:
        """Fail with the findings on this head, or skip a stage that was not run."""
        report = self.parent.report
        if isinstance(report, Exception):
            raise report
        (stage,) = [stage for stage in report.stages if stage.id == self.stage]
        if stage.status == "not run":
            pytest.skip(f"not run: {'; '.join(stage.reasons)}")
        if stage.status == "failed" and (findings := stage.findings_of(self.head)):
            raise OutOfBudget("\n".join([f"{self.stage}, {self.head}:", *map(str, findings), *report.blame]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message without a traceback through this package."""
        from .core.errors import DptError

        if isinstance(excinfo.value, OutOfBudget | DptError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The location that pytest displays."""
        return self.parent.folder, None, self.nodeid


class OutOfBudget(AssertionError):
    """A head of a stage is out of budget."""
