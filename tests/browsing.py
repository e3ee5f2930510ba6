"""Headless Chromium, led by Selenium: one for all tests of pages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")


class Browser:
    """A running Chromium. Its errors are in `driver.get_log("browser")`."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        settings = webdriver.ChromeOptions()
        for flag in (*FLAGS, "--window-size=1400,900", f"--user-data-dir={profile}"):
            settings.add_argument(flag)
        settings.binary_location = shutil.which("chromium")
        settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Chrome = webdriver.Chrome(
            options=settings, service=Service(shutil.which("chromedriver"))
        )

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def wait(self, what: str, *arguments: object) -> object:
        """The value of a JavaScript expression once it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, 0.05).until(
            lambda driver: driver.execute_script(f"return {what}", *arguments)
        )

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def emulate(self, width: int, media: str = "", dark: bool = False) -> None:
        """Show the page as on a screen of this width, or on paper (media "print")."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"media": media, "features": [scheme]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)


def skip_without_browser() -> None:
    pytest.importorskip("selenium", reason="selenium is absent: no browser can be led")
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            pytest.skip(f"{program} is absent: apt-get install chromium chromium-driver")
