"""Pictures of TensorBoard's dashboards, and what they really show.

    python -m docs.screenshots LOGDIR OUT --shots custom_scalars images "images:layers/path"

It needs ``pip install ".[screenshots]"`` and the system's Chromium with its driver. A picture is taken once a condition
is seen in the page, never after a pause alone: every card has something drawn, and nothing changes any more.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

_SECONDS = 120.0  # pages are there in a few seconds, but not where long runs share the cores
_PAUSE = 0.2  # between two looks
_STILL = 1.0  # how long nothing changes before a picture counts


_HEADING = "first(card, '.heading-label.name')"


class _Cards(NamedTuple):
    """The cards of a dashboard, how much is drawn in one, and what one is called, as JavaScript."""

    selector: str
    amount: str
    name: str = _HEADING


_LINES = "drawn(card, '.line-plot:not(.ghost):not(.area-plot) path')"  # ghosts: a smoothed curve's own values

_DASHBOARDS = {
    "custom_scalars": _Cards(
        "tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card",
        _LINES,
        name=f"{_HEADING} && card.closest('tf-category-paginated-view').category.name + '/' + {_HEADING}",
    ),
    "scalars": _Cards(
        "tf-scalar-card", _LINES, name=f"first(card, '.heading-row > div:not(.name) > span') || {_HEADING}"
    ),
    "timeseries": _Cards("scalar-card", "drawn(card, '.series-view path')", name="first(card, 'tb-truncated-path')"),
    "images": _Cards("tf-image-loader", "Math.max(0, ...inside(card, 'img').map((image) => image.naturalWidth))"),
    "histograms": _Cards("tf-histogram-loader", "drawn(card, '.histogram path')"),
    "text": _Cards("tf-text-loader", "inside(card, 'tf-markdown-view').map(words).join('').trim().length"),
    "hparams": _Cards("tf-hparams-table-view", "card.sessionGroups?.length ?? 0", name="'table'"),
}

_LARGER = "paper-icon-button[icon='fullscreen'], img, button[aria-label*='full size']"

# TensorBoard is made of nested shadow trees, which selectors do not look into.
_SEARCH = """
const inside = (root, selector) => [root, ...root.querySelectorAll('*')].flatMap((node) => [
    ...(node === root ? root.querySelectorAll(selector) : []),
    ...(node.shadowRoot ? inside(node.shadowRoot, selector) : []),
]);
const words = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent;
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
    return [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(words).join(' ').replace(/\\s+/g, ' ');
};
const isInWindow = (card) => {
    const {top, bottom} = card.getBoundingClientRect();
    return top < innerHeight && bottom > 0;
};
const first = (card, selector) => inside(card, selector)[0]?.textContent.trim() ?? '';
const drawn = (card, selector) => inside(card, selector).filter((path) => path.getAttribute('d')).length;
"""

# Only the first categories are open on a first visit, and more may come: every look opens those that are closed.
_EXPAND = """
const closed = [
    ...inside(document, 'tf-category-paginated-view')
        .filter((view) => inside(view.shadowRoot, 'iron-collapse').some((collapse) => !collapse.opened))
        .map((view) => inside(view.shadowRoot, 'button.heading')[0]),
    ...inside(document, 'button.group-toolbar:has([data-mat-icon-name="expand_more_24px"])'),
];
closed.forEach((button) => button?.click());
"""

# What a browser remembers of earlier visits: else curves are smoothed, cards come in pages of twelve, and a pane of
# settings takes a fifth of the window. Values far out stay cut off, as TensorBoard does it.
_REMEMBERED = {
    "theme": "light",
    "scalarSmoothing": 0,
    "paginationSize": 1000,
    "timeSeriesSettingsPaneOpened": False,
    "stepSelectorEnabled": False,
}


class Board:
    """TensorBoard in a browser's window, one dashboard at a time.

    Args:
        url: Where TensorBoard answers.
        driver: The browser.
        seconds: How long a condition is waited for.
    """

    def __init__(self, url: str, driver: WebDriver, seconds: float = _SECONDS) -> None:
        self.url = url
        self.driver = driver
        self.seconds = seconds
        self.dashboard = ""

    def open(self, dashboard: str, tags: str = "") -> None:
        """Open a dashboard and all its categories; the cards are waited for, but not what is drawn in them.

        Args:
            dashboard: Its name in TensorBoard's addresses.
            tags: A regular expression of the tags to show first; custom scalars and hparams have none.
        """
        if dashboard not in _DASHBOARDS:
            raise ValueError(f"No dashboard {dashboard!r}: choose from {', '.join(_DASHBOARDS)}.")
        self.dashboard = dashboard
        self.driver.get("about:blank")  # else only the fragment of the address changes, and nothing is loaded
        # Lines drawn by WebGL would not be in the page; and the older dashboards know no setting of smoothing but this.
        only = f"&tagFilter={quote(tags)}" if tags else ""  # after ? for the time series, after # for the others
        self.driver.get(f"{self.url}?forceSVG=true{only}#{dashboard}&_smoothingWeight=0{only}")
        self.until(lambda: self._cards(self._parts.name), lambda names: names and all(names), "cards with names")

    def drawn(self, in_window: bool = False) -> dict[str, int]:
        """How much is drawn in each card: lines, shapes of a histogram, pixels across an image, letters, rows.

        A card is named by its tag, a chart of a layout by category/title. Of cards with one name, as several runs make
        them, the emptiest counts. The cards of the time series are empty until they are scrolled to.
        """
        found: dict[str, int] = {}
        for name, amount, is_in_window in self._cards(f"[{self._parts.name}, {self._parts.amount}, isInWindow(card)]"):
            if is_in_window or not in_window:
                found[name] = min(amount, found.get(name, amount))
        return found

    def text(self, card: str | None = None) -> str:
        """All words of a card, or of the page, with single spaces between them."""
        return str(self._run("return words(arguments[0] ?? document.body).trim()", card and self.card(card)))

    def card(self, name: str) -> WebElement:
        """The first card of this name."""
        cards: dict[str, WebElement] = dict(reversed(self._cards(f"[{self._parts.name}, card]")))
        if name not in cards:
            raise ValueError(f"No card {name!r} in TensorBoard's {self.dashboard}: there are {sorted(cards)}.")
        return cards[name]

    def enlarge(self, card: str) -> None:
        """Press the card's own button that makes it as wide as the page; images get their own size, texts have none."""
        self._run(f"inside(arguments[0], `{_LARGER}`)[0]?.click()", self._show(card))

    def until(self, read: Callable[[], T], accept: Callable[[T], object], what: str) -> T:
        """Read until it is accepted.

        Raises:
            TimeoutError: It was not, in time; with what was not seen, and what was.
        """
        end = time.monotonic() + self.seconds
        while not accept(seen := read()):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"Not seen in TensorBoard's {self.dashboard} within {self.seconds:g} s: {what}. Seen: {seen!r:.500}"
                )
            time.sleep(_PAUSE)
        return seen

    def until_drawn(self, expected: dict[str, int] | None = None) -> dict[str, int]:
        """Wait for what is expected of some cards, else for something in each card in the window; return them all."""
        if expected is not None:
            return self.until(self.drawn, lambda seen: expected.items() <= seen.items(), f"in the cards {expected}")
        return self.until(
            lambda: self.drawn(in_window=True), lambda seen: seen and all(seen.values()), "something in every card"
        )

    def save(self, picture: Path, card: str | None = None) -> None:
        """Save the window, or one card, as PNG once it has looked the same for a second."""
        element = self._show(card) if card else None
        shot, since = b"", time.monotonic()

        def age() -> float:
            nonlocal shot, since
            now = element.screenshot_as_png if element else self.driver.get_screenshot_as_png()
            if now != shot:
                shot, since = now, time.monotonic()
            return time.monotonic() - since

        self.until(age, lambda seconds: seconds >= _STILL, "the same picture for a second")
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(shot)

    @property
    def _parts(self) -> _Cards:
        return _DASHBOARDS[self.dashboard]

    def _cards(self, value: str) -> list[Any]:
        return list(self._run(f"{_EXPAND} return inside(document, '{self._parts.selector}').map((card) => {value})"))

    def _show(self, card: str) -> WebElement:
        """Scroll to a card, since its picture would be cut off where the window ends, and wait for what is drawn."""
        element = self.card(card)
        self._run("arguments[0].scrollIntoView({block: 'center'})", element)
        self.until(lambda: self.drawn().get(card), bool, f"something in {card!r}")
        return element

    def _run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(_SEARCH + script, *arguments)


@contextmanager
def tensorboard(logdir: Path, seconds: float = _SECONDS) -> Iterator[str]:
    """Serve logs on a free port, and stop when left.

    It answers once everything is read: the logs are read before it starts to listen, and not again.

    Yields:
        Where it answers.
    """
    if not logdir.is_dir():
        raise FileNotFoundError(f"There is no folder {logdir} to read logs from.")
    # Every dashboard shows the folder as it is given here, and a picture should not tell where it lies.
    folder = logdir.resolve()
    flags = ["--host=127.0.0.1", "--port=0", "--load_fast=false", "--reload_interval=0", "--reload_task=blocking"]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder.name}", *flags]
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(command, cwd=folder.parent, stdout=said, stderr=said)
        try:
            yield _address(process, Path(said.name), seconds)
        finally:
            process.kill()
            process.wait()


@contextmanager
def browser(width: int = 1400, height: int = 900, scale: float = 1.0) -> Iterator[WebDriver]:
    """A headless Chromium that has been to TensorBoard before.

    Args:
        width: Of the page in pixels.
        height: Of the page in pixels.
        scale: Pixels of the picture for each of the page.

    Yields:
        The browser, closed when left.
    """
    chromium, driver_program = find_chromium()
    options = Options()
    options.binary_location = chromium
    # No sandbox: it does not start as root, and only our own pages are opened. Little is shared memory in containers.
    for flag in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-US"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        # A size of the window would include the browser's own bars.
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        remember = f"localStorage.setItem('_tb_global_settings', JSON.stringify({json.dumps(_REMEMBERED)}))"
        source = f"if (location.protocol === 'http:') {remember}"
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        yield driver
    finally:
        driver.quit()


def find_chromium() -> tuple[str, str]:
    """The programs of Chromium and of its driver.

    Raises:
        FileNotFoundError: One of them is not there; it says how to install them.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        raise FileNotFoundError(
            "Screenshots need Chromium and its driver: apt-get install chromium chromium-driver "
            f"(found: {chromium or 'no chromium'}, {driver or 'no chromedriver'})."
        )
    return chromium, driver


def main(args: Namespace) -> None:
    """Take the pictures asked for, one file each."""
    with tensorboard(args.logdir) as url, browser(args.width, args.height, args.scale) as driver:
        board = Board(url, driver, args.seconds)
        for shot in args.shots:
            dashboard, _, card = shot.partition(":")
            picture = args.out / f"{re.sub(r'[^A-Za-z0-9]+', '_', shot)}.png"
            board.open(dashboard, args.tags)
            if not card:
                board.until_drawn()
            elif args.large:
                board.enlarge(card)
            board.save(picture, card or None)
            print(f"{picture}: {board.drawn(in_window=True)}")


def _address(process: subprocess.Popen[bytes], said: Path, seconds: float) -> str:
    """Where TensorBoard says that it listens, once it does."""
    end = time.monotonic() + seconds
    while not (address := re.search(r"http://127\.0\.0\.1:\d+/", said.read_text(errors="replace"))):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"TensorBoard has not started within {seconds:g} s. It said:\n{said.read_text()}")
        time.sleep(_PAUSE)
    return address[0]


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path)
    parser.add_argument("out", type=Path, help="the folder of the pictures")
    parser.add_argument("--shots", nargs="+", default=["custom_scalars"], help=f"{', '.join(_DASHBOARDS)}, or one:card")
    parser.add_argument("--tags", default="", help="a regular expression of the tags to show first")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of the picture for each of the page")
    parser.add_argument("--large", action="store_true", help="enlarge the cards that are asked for")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="how long to wait for what should be seen")
    try:
        main(parser.parse_args())
    except (FileNotFoundError, RuntimeError, TimeoutError, ValueError) as error:
        sys.exit(str(error))
