"""What the tests of pages share: one browser."""

from collections.abc import Iterator

import browsing
import pytest


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsing.Browser]:
    browsing.skip_without_browser()
    running = browsing.Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.driver.quit()
