"""Fixtures for tests of one's own on a bundle that `pytest --dpt-bundle FOLDER` names.

The plugin is loaded by pytest itself where dpt-deploy is installed; it adds a test for each stage and head.
"""

from collections.abc import Iterator

import pytest

import dpt_deploy


@pytest.fixture(scope="session")
def runtime(pytestconfig: pytest.Config) -> Iterator[dpt_deploy.Runtime]:
    """The first bundle of the command line, loaded on the best backend of this machine."""
    folders = pytestconfig.getoption("dpt_bundle")
    if not folders:
        pytest.skip("no bundle: run pytest --dpt-bundle FOLDER")
    with dpt_deploy.load(pytestconfig.invocation_params.dir / folders[0]) as runtime:
        yield runtime
