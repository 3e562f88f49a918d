"""Create README's pictures from a real run of ``thawline demo`` in an empty folder, and screenshots of all pages.

python tools/pictures.py            # docs/images/demo.svg, the terminal, and docs/images/report.png, the report's start
python tools/pictures.py --pages    # build/screenshots/pages/: report, study in MLflow, serving page, site

The first takes as long as the demo. The second shows the latest study of ``.thawline`` (``THAWLINE_HOME``), such as the
one of ``make demo``, and the site if ``make docs`` has built it. Both need Chromium.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLUMNS = 100
LARGEST = {"demo.svg": 60_000, "report.png": 250_000}
"""Maximum bytes, as README is also read over slow connections."""
_WINDOW = "1280,1330"
_LOOKS = {
    "1400.png": ("1400,1000", False),
    "1400-dark.png": ("1400,1000", True),
    "390.png": ("390,844", False),
    "390-dark.png": ("390,844", True),
    "printed.pdf": ("1400,1000", False),
}
"""Suffixes of screenshots: window in pixels, and whether dark mode is on."""
_SHORTENED = 3.0
"""The longest pause of the recording in seconds, even if the run paused longer."""
_CONTROL = re.compile(r"(\n|\r|\x1b\[\??\d*[A-Za-ln-z])")
"""A line break, or an escape sequence that moves the cursor or erases; colours (``ESC [ … m``) are text."""
_APPEAR = "@media (prefers-reduced-motion: no-preference) { @keyframes appear { from { opacity: 0 } } }"


class Line(NamedTuple):
    """A line that is on the screen at the end of the command."""

    text: str
    """Its text with colours as ANSI escape sequences."""
    seconds: float
    """When it was written, in seconds since the start of the command."""


class Screen:
    """The lines of a terminal for rich's output, which erases a line before rewriting it."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._row = 0

    @property
    def lines(self) -> list[Line]:
        """The lines on the screen, without trailing empty lines."""
        last = max((row for row, line in enumerate(self._lines) if Text.from_ansi(line.text).plain.strip()), default=-1)
        return self._lines[: last + 1]

    def write(self, text: str, seconds: float) -> None:
        """Write output of the command at this time, which must not end within an escape sequence."""
        for part in _CONTROL.split(text):
            while len(self._lines) <= self._row:
                self._lines.append(Line("", seconds))
            if part == "\n":
                self._row += 1
            elif part.endswith("A") and part.startswith("\x1b["):
                self._row = max(0, self._row - int(part[2:-1] or 1))
            elif part.endswith("K") and part.startswith("\x1b["):
                self._lines[self._row] = Line("", seconds)
            elif part and not _CONTROL.fullmatch(part):
                self._lines[self._row] = Line(self._lines[self._row].text + part, seconds)


def record(command: list[str], folder: Path) -> list[Line]:
    """Run a command in a terminal of :data:`COLUMNS` columns; returns the final screen.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    shown, terminal = pty.openpty()
    screen, rest, began = Screen(), "", time.monotonic()
    with subprocess.Popen(command, cwd=folder, env=_environment(), stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        while said := _read(shown):
            rest += said.decode("utf-8", errors="replace")
            *whole, rest = rest.rpartition("\n")
            screen.write("".join(whole), time.monotonic() - began)
    os.close(shown)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, rest)
    screen.write(rest, time.monotonic() - began)
    return screen.lines


def _environment() -> dict[str, str]:
    """The current environment without a user's settings."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("THAWLINE_", "MLFLOW_", "PREFECT_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**own, "PATH": path, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # on Linux, when the last process has closed it
        return b""


def svg(command: list[str], lines: list[Line]) -> str:
    """The recording as an animation in which each line appears when it was written; without animations, all at once."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.assemble(("$ ", "bold green"), (" ".join(command), "bold")))
        for line in lines:
            console.print(Text.from_ansi(line.text), no_wrap=True, crop=True)
        drawn = console.export_svg(title=" ".join(command), unique_id="demo")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # an image must not load fonts
    for row, seconds in enumerate(_delays(lines), start=1):
        shown = f'clip-path="url(#demo-line-{row})"'
        drawn = drawn.replace(shown, f'{shown} style="animation:appear 0.1s {seconds:.1f}s backwards"')
    return drawn.replace("</style>", f"{_APPEAR}\n</style>", 1)


def _delays(lines: list[Line]) -> list[float]:
    """Seconds after which each line appears: those of the run, with long pauses shortened."""
    delays, before, now = [], 0.0, 0.0
    for line in lines:
        now += min(max(0.0, line.seconds - before), _SHORTENED) / 2
        before = max(before, line.seconds)
        delays.append(now)
    return delays


def photograph(page: str, target: Path, *, window: str = _WINDOW, dark: bool = False) -> None:
    """Take a screenshot of the first screen of a page, or, for a ``.pdf``, print all of it.

    Args:
        page: address of the page.
        target: the file.
        window: width and height in pixels.
        dark: whether to use dark mode.

    Raises:
        RuntimeError: There is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("the picture of the report requires Chromium: install Debian's package chromium")
    printed = target.suffix == ".pdf"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    subprocess.run(
        [
            *(chromium, *quiet, f"--window-size={window}", "--virtual-time-budget=15000"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *(["--no-pdf-header-footer", f"--print-to-pdf={target}"] if printed else [f"--screenshot={target}"]),
            page,
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


def photograph_pages(folder: Path) -> list[Path]:
    """Take screenshots of every page at two widths, light and dark, and printed.

    Args:
        folder: folder for the pictures.

    Raises:
        RuntimeError: There is no study with a report, or no Chromium.
    """
    from thawline import environment
    from thawline.tracking import find_study_run, open_store

    environment.prepare()
    home = environment.home()
    reports = sorted(home.glob("studies/*/report/report.html"), key=lambda report: report.stat().st_mtime)
    if not reports:
        raise RuntimeError(f"{home} has no study with a report: run `thawline demo` first")
    report = reports[-1].absolute()
    model = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))["promotion"]["model"]
    store = open_store(None, home)
    run = store.page(f"/runs/{find_study_run(store, report.parents[1].name)}")
    site = Path(__file__).resolve().parents[1] / "site" / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        _running(["thawline", "serve", model, "--port", "0"], r"http://127\.0\.0\.1:\d+") as serving,
        _running(["thawline", "ui"], r"MLflow +(http://[^/]+)") as mlflow,
    ):
        pages = {"report": report.as_uri(), "mlflow": f"{mlflow}/{run}", "serving": serving}
        pages |= {"site": site.as_uri()} if site.exists() else {}
        targets = []
        for (name, page), (look, (window, dark)) in product(pages.items(), _LOOKS.items()):
            targets.append(folder / f"{name}-{look}")
            photograph(page, targets[-1], window=window, dark=dark)
    return targets


@contextmanager
def _running(command: list[str], says: str) -> Iterator[str]:
    """Run a command within the block once its output matches; yields the first group, or the whole match."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None  # noqa: S101  it is a pipe
        try:
            for line in process.stdout:
                if found := re.search(says, line):
                    yield found[found.re.groups]
                    break
            else:
                raise RuntimeError(f"{' '.join(command)} ended early, with exit code {process.wait()}")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def main(arguments: list[str]) -> int:
    """Create both pictures, or those of all pages; returns the exit code."""
    if arguments == ["--pages"]:
        for target in photograph_pages(Path("build/screenshots/pages")):
            print(target)
        return 0
    command = ["thawline", "demo"]
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = record(command, Path(folder))
        (IMAGES / "demo.svg").write_text(svg(command, lines), encoding="utf-8")
        subprocess.run(["thawline", "down"], cwd=folder, env=_environment(), check=True, capture_output=True)
        (page,) = Path(folder).glob(".thawline/studies/*/report/report.html")
        photograph(page.as_uri(), IMAGES / "report.png")
    large = [name for name, most in LARGEST.items() if (IMAGES / name).stat().st_size > most]
    for name in large:
        print(f"docs/images/{name} has more than {LARGEST[name]:,} bytes", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
