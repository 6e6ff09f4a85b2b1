"""A browser for the tests of the page."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # most tests here have no browser
    from page_site import Site
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules'
def browser() -> Iterator["Browser"]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed here")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a busy machine is no finding
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(browser: "Browser") -> Iterator["Site"]:
    from page_site import site_of

    with site_of(browser) as site:
        site.open()
        yield site
