"""What several of the end-to-end tests need: a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")  # Playwright's loop stays in its thread, so not for the whole session
def chromium() -> Iterator:
    """Chromium, of the system or of Playwright, that asks for nothing of its own."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as started:
        if found is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here; install one, or run: playwright install chromium")
        browser = started.chromium.launch(executable_path=found, args=QUIET.split())
        yield browser
        browser.close()
