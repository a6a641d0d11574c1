"""The page with the Sync All button, in a real browser, against the real API, workers and PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EQUAL, Family
from worker.settings import Settings

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=20_000)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="no chromium is installed"),
]

ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOKEN = "Qm9yaW5nLXRva2Vu"
OTHER = "QW5vdGhlci10b2tlbg"
ROOT = Path(__file__).parents[2]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 380, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the module."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@dataclass
class Service:
    """The API as a process on a port of its own, to be stopped and started, and workers beside it."""

    settings: Settings
    stack: ExitStack
    token: str = TOKEN
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/"

    def start(self, token: str | None = None) -> None:
        """Serve, with that API_TOKEN, on a free port the first time and on the same one again after that."""
        self.token = self.token if token is None else token
        port_file = self.settings.LOG_DIR.parent / "port"
        port_file.unlink(missing_ok=True)
        self.process = self._run("serve", "--port-file", str(port_file))
        until = time.monotonic() + 60
        while not port_file.exists():
            assert self.process.poll() is None, f"the API ended with {self.process.returncode}"
            assert time.monotonic() < until, "the API did not start"
            time.sleep(0.05)
        self.port = int(port_file.read_text())

    def stop(self) -> None:
        """End the API and wait until it is gone."""
        assert self.process is not None
        _end(self.process)

    def work(self, *options: str) -> subprocess.Popen[bytes]:
        """A worker process; it ends with the test."""
        return self._run("work", "--quiet", "--memory", "4096", *options)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        secret = {"APP_KEY", "DATABASE_URL"}
        values = {
            name: value.get_secret_value() if name in secret else str(value)
            for name in Settings.names()
            if (value := getattr(self.settings, name)) is not None
        }
        env = os.environ | values | {"API_PORT": str(self.port), "API_TOKEN": self.token}
        log = self.stack.enter_context((self.settings.LOG_DIR.parent / f"{command[0]}.out").open("ab"))
        command = (sys.executable, "-m", "worker", *command)
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        self.stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def service(family: Family) -> Iterator[Service]:
    """The API of the family, serving."""
    with ExitStack() as stack:
        service = Service(family.app.settings, stack)
        service.start()
        yield service


@dataclass
class Visit:
    """A person at the page, and everything the browser complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._on_requestfailed)

    def _on_console(self, message: Any) -> None:
        # The browser itself tells each 401, which is how the page learns that a token is wanted.
        if message.type in ("error", "warning") and "401 (Unauthorized)" not in message.text:
            self.complaints.append(message.text)

    def _on_requestfailed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # a reload while a poll was under way
            self.complaints.append(f"{request.url}: {request.failure}")

    def enter(self, token: str = TOKEN) -> None:
        """Answer the question for the token, which a 401 has caused."""
        self.page.get_by_label("Token", exact=True).fill(token)
        without(self, "401 (Unauthorized)")
        self.page.get_by_role("button", name="Continue").click()

    def tiles(self, where: str) -> dict[str, str]:
        """A list of facts as it is read: {"created": "120", ...}."""
        terms = self.page.locator(f"{where} dt").all_inner_texts()
        return dict(zip(terms, self.page.locator(f"{where} dd").all_inner_texts(), strict=True))

    def sync(self, name: str = "Main", label: str = "Sync All") -> None:
        """Press that account's button."""
        self.page.get_by_role("button", name=f"{label}: {name}").click()


@contextmanager
def visiting(browser: Any, service: Service, viewport: dict[str, int] = WIDE, **context: Any) -> Iterator[Visit]:
    """A browser of its own at the page; at the end it must not have complained."""
    with browser.new_context(viewport=viewport, **context) as opened:
        visit = Visit(opened.new_page())
        visit.page.goto(service.url)
        yield visit
        assert visit.complaints == []


def without(visit: Visit, *known: str) -> None:
    """Take the complaints that this test causes on purpose off the list."""
    visit.complaints[:] = [one for one in visit.complaints if not any(word in one for word in known)]


def shot(visit: Visit, name: str) -> None:
    """A picture of the whole page, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        visit.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_the_token_is_asked_for_once(browser: Any, service: Service) -> None:
    """Asked at the first visit, kept over a reload, asked anew when the service refuses it or it is forgotten."""
    with visiting(browser, service) as visit:
        ask, main = visit.page.locator("#ask"), visit.page.locator("main")
        expect(ask).to_be_visible()
        expect(visit.page.locator("#ask-why")).to_be_hidden()
        expect(main).to_be_hidden()
        shot(visit, "ask")

        visit.enter("wrong")
        expect(visit.page.locator("#ask-why")).to_have_text("The service refused this token.")
        visit.enter()
        expect(main).to_be_visible()
        visit.page.reload()
        expect(main).to_be_visible()
        expect(ask).to_be_hidden()

        service.stop()
        service.start(token=OTHER)
        expect(visit.page.locator("#ask-why")).to_have_text("The service refused this token.")
        visit.page.keyboard.press("Escape")
        expect(ask).to_be_visible()
        visit.enter(OTHER)
        expect(visit.page.locator("#state")).to_have_text("live")
        visit.page.get_by_role("button", name="Forget token").click()
        expect(ask).to_be_visible()
        expect(main).to_be_hidden()
        without(visit, "ERR_CONNECTION")


def test_without_a_token_nothing_is_asked(browser: Any, service: Service) -> None:
    """On this machine alone the page is there at once, and the button works."""
    service.stop()
    service.start(token="")
    with visiting(browser, service) as visit:
        expect(visit.page.locator("main")).to_be_visible()
        expect(visit.page.locator("#forget")).to_be_hidden()
        visit.sync()
        expect(visit.page.locator("#notice")).to_have_text("Sync of Main started.")


def test_accounts_are_shown(browser: Any, family: Family, service: Service) -> None:
    """Each main with its children and a button for each; one without links without; one parked with its reason."""
    family.app.accounts.park(family.children[1], "MoySklad refuses its token")
    family.add("main", "Lonely <b>&amp; odd</b>")
    with visiting(browser, service) as visit:
        visit.enter()
        groups = visit.page.locator("#accounts .group")
        expect(groups).to_have_count(2)

        family_group = groups.filter(has=visit.page.get_by_role("heading", name="Main", exact=True))
        expect(family_group.get_by_role("listitem")).to_have_count(2)
        expect(family_group.get_by_role("listitem").nth(1)).to_contain_text("MoySklad refuses its token")
        expect(family_group.locator(".badge.parked")).to_have_count(1)
        lonely = groups.filter(has=visit.page.get_by_role("heading", name="Lonely <b>&amp; odd</b>"))
        expect(lonely.get_by_role("button")).to_have_count(0)
        assert sorted(visit.page.locator("[data-account]").evaluate_all("all => all.map(one => one.ariaLabel)")) == [
            "Sync All: Main", "Sync: First", "Sync: Second"
        ]  # fmt: skip


def test_sync_all_from_the_press_to_the_end(browser: Any, family: Family, service: Service) -> None:
    """Progress moves, ends at done with the right counts, and the children are equal; again, nothing is written."""
    family.simulator.control("POST", "/speed", latency_ms=150)
    with visiting(browser, service) as visit:
        visit.enter()
        expect(visit.page.locator("#run-title")).to_have_text("No sync yet: press Sync All.")
        service.work("--sleep", "0.2", "--batch", "20")
        expect(visit.page.locator("#workers")).to_contain_text("pid")

        visit.sync()
        expect(visit.page.locator("#notice")).to_have_text("Sync of Main started.")
        expect(visit.page.locator("#run-title")).to_have_text("Sync of Main")
        expect(visit.page.locator("#run-line")).to_have_text(re.compile(r"\d+ of \d+ tasks done, \d+ %"))
        shot(visit, "running")
        expect(visit.page.locator("#run-badge")).to_have_text("completed", timeout=60_000)

        expect(visit.page.locator("#run-line")).to_have_text("120 goods written, 0 failures.")
        assert visit.tiles("#run-results") == {"created": "120", "updated": "0", "unchanged": "0", "skipped": "0"}
        assert visit.tiles("#run-tasks") == {"pending": "0", "processing": "0", "completed": "123", "failed": "0"}
        assert visit.page.locator("#run-bar").evaluate("bar => bar.value / bar.max") == 1
        assert [family.difference(child) for child in family.children] == [EQUAL, EQUAL]

        visit.sync()
        expect(visit.page.locator("#runs li")).to_have_count(2)
        expect(visit.page.locator("#run-line")).to_have_text(
            "Everything was equal already: nothing had to be written.", timeout=60_000
        )
        visit.page.locator("#runs li").last.get_by_role("button").click()
        expect(visit.page.locator("#run-line")).to_have_text("120 goods written, 0 failures.")


def test_a_second_press_tells_that_it_joined(browser: Any, service: Service) -> None:
    """No worker lives: the run waits, its tasks are seen, and whoever presses again hears that they joined."""
    with visiting(browser, service) as visit:
        visit.enter()
        visit.sync()
        expect(visit.page.locator("#notice")).to_have_text("Sync of Main started.")
        expect(visit.page.locator("#accounts .badge.running")).to_have_text("syncing")

        visit.sync("First", "Sync")

        told = "A sync that covers First is under way already: joined it."
        expect(visit.page.locator("#notice")).to_have_text(told)
        expect(visit.page.locator("#runs li")).to_have_count(1)
        expect(visit.page.locator("#queue")).to_contain_text("no worker listens")
        expect(visit.page.locator("#workers")).to_have_text("No worker is alive: nothing will be worked on.")
        assert visit.tiles("#queue")["pending"] == "1"


def test_failures_are_told(browser: Any, family: Family, service: Service) -> None:
    """A good that MoySklad refuses: the run is done with a failure, and its reason is there twice."""
    fault = {"kind": "item_error", "method": "POST", "items": [3], "code": 3000, "path": "/entity/product"}
    family.simulator.control("POST", "/faults", **fault, account=str(family.children[0]), count=1)
    family.sync()
    with visiting(browser, service) as visit:
        visit.enter()
        expect(visit.page.locator("#run-badge")).to_have_text("done, with failures")
        expect(visit.page.locator("#run-line")).to_have_text("119 goods written, 1 failure.")
        problems = visit.page.locator("#run-problems")
        expect(problems.locator("summary")).to_have_text("1 problem")
        problems.locator("summary").click()
        expect(problems.get_by_role("listitem")).to_contain_text("3000")
        expect(problems.get_by_role("listitem")).to_contain_text("First")
        expect(visit.page.locator("#failures li")).to_have_count(1)
        expect(visit.page.locator("#failures li")).to_contain_text("3000")
        shot(visit, "failures")


def test_what_waits_for_a_parked_account_is_told(browser: Any, family: Family, service: Service) -> None:
    """The run is over for the others, says how much waits and why, and its bar is not full."""
    second = family.children[1]
    family.app.accounts.park(second, "MoySklad refuses its token")
    family.sync()
    with visiting(browser, service) as visit:
        visit.enter()
        expect(visit.page.locator("#run-badge")).to_have_text("waits for an account")
        expect(visit.page.locator("#run-line")).to_have_text(
            "60 goods written, 0 failures. 1 task will go on when its account is no longer parked."
        )
        assert visit.page.locator("#run-bar").evaluate("bar => bar.value < bar.max") is True
        shot(visit, "waiting")


def test_the_service_goes_away_and_comes_back(browser: Any, service: Service) -> None:
    """It is told, what was seen stays, a press says that nothing may have started, and all goes on by itself."""
    with visiting(browser, service) as visit:
        visit.enter()
        expect(visit.page.locator("#state")).to_have_text("live")

        service.stop()
        expect(visit.page.locator("#away")).to_contain_text("The service does not answer")
        expect(visit.page.locator("#state")).to_have_text("away")
        expect(visit.page.locator("#accounts")).to_contain_text("Second")
        visit.sync()
        expect(visit.page.locator("#notice")).to_contain_text("The service did not answer")
        shot(visit, "away")

        service.start()
        expect(visit.page.locator("#away")).to_be_hidden()
        expect(visit.page.locator("#state")).to_have_text("live")
        visit.sync()
        expect(visit.page.locator("#notice")).to_have_text("Sync of Main started.")
        without(visit, "ERR_CONNECTION")


def test_a_narrow_screen(browser: Any, family: Family, service: Service) -> None:
    """380 pixels wide nothing needs to be scrolled sideways, however long a name, and every button can be hit."""
    family.add("child", "Очень-длинное-название-магазина-без-единого-пробела-на-всю-ширину-и-дальше")
    fault = {"kind": "item_error", "method": "POST", "items": [3], "code": 3000, "path": "/entity/product"}
    family.simulator.control("POST", "/faults", **fault, account=str(family.children[0]), count=1)
    family.sync()
    with visiting(browser, service, NARROW, has_touch=True) as visit:
        visit.enter()
        expect(visit.page.locator("#run-badge")).to_have_text("done, with failures")
        visit.page.locator("#run-problems summary").click()
        service.work("--sleep", "0.2")
        expect(visit.page.locator("#workers")).to_contain_text("pid")

        width = visit.page.evaluate("document.documentElement.scrollWidth")
        boxes = [button.bounding_box() for button in visit.page.locator("main button").all()]

        assert width == NARROW["width"]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 32 for box in boxes)


def test_many_accounts_can_be_filtered(browser: Any, family: Family, service: Service) -> None:
    """From nine accounts on a field narrows the list to names that contain what was typed."""
    for n in range(8):
        family.add("child", f"Branch {n}")
    with visiting(browser, service) as visit:
        visit.enter()
        expect(visit.page.locator("#accounts li")).to_have_count(10)
        visit.page.get_by_label("Filter accounts by name").fill("branch 3")

        expect(visit.page.locator("#accounts li")).to_have_count(1)
        expect(visit.page.locator("#accounts li")).to_contain_text("Branch 3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_can_be_read(
    browser: Any, family: Family, service: Service, viewport: dict[str, int], scheme: str
) -> None:
    """Every text stands out from what is behind it by 4.5 : 1, as WCAG AA asks, in light and dark."""
    family.app.accounts.park(family.add("child", "Third"), "MoySklad refuses its token")
    family.sync(family.children[0])
    family.simulator.control("POST", "/speed", latency_ms=100)
    fault = {"kind": "item_error", "method": "POST", "items": [3, 5], "code": 3000, "path": "/entity/product"}
    family.simulator.control("POST", "/faults", **fault, account=str(family.children[1]), count=1)
    family.sync(family.children[1])
    with visiting(browser, service, viewport, color_scheme=scheme) as visit:
        visit.enter()
        service.work("--sleep", "0.2")
        expect(visit.page.locator("#workers")).to_contain_text("pid")
        visit.page.locator("#run-problems summary").click()
        shot(visit, f"{scheme}-{viewport['width']}")

        assert visit.page.evaluate(_FAINT) == []


_FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = colours => {  // the colours on top of each other, as the browser mixes them
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => value / 255);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest("script, style, noscript, :disabled, .unseen")) continue;
    const behind = [];
    for (let up = node; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
    const [text, back] = [light(paint([...behind, getComputedStyle(node).color])), light(paint(behind))];
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${node.className || node.tagName}: ${node.textContent.trim()}`);
  }
  return faint;
}"""
