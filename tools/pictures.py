"""Makes README's pictures out of one real run of ``thawline demo`` in an empty folder.

python tools/pictures.py    # docs/images/demo.svg, the terminal, and docs/images/report.png, the report's first screen

Takes as long as the demo, and needs Chromium for the report.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLUMNS = 100
LARGEST = {"demo.svg": 60_000, "report.png": 250_000}
"""Bytes: README is read over slow lines, too."""
_WINDOW = "1280,1330"
_SHORTENED = 3.0
"""The longest pause of the recording, in seconds, however long the run paused there."""
_CONTROL = re.compile(r"(\n|\r|\x1b\[\??\d*[A-Za-ln-z])")
"""A line break, or an escape sequence that moves the cursor or erases; colours (``ESC [ … m``) are text."""
_APPEAR = "@media (prefers-reduced-motion: no-preference) { @keyframes appear { from { opacity: 0 } } }"


class Line(NamedTuple):
    """A line that stays on the screen when the command has ended."""

    text: str
    """With its colours as ANSI escape sequences."""
    seconds: float
    """When it was written, since the command began."""


class Screen:
    """The lines that a terminal would show, of what rich writes: it erases a line before it writes it again."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._row = 0

    @property
    def lines(self) -> list[Line]:
        """What is on the screen, without empty lines at its end."""
        last = max((row for row, line in enumerate(self._lines) if Text.from_ansi(line.text).plain.strip()), default=-1)
        return self._lines[: last + 1]

    def write(self, text: str, seconds: float) -> None:
        """Write what the command has said at this time; an escape sequence may not be cut in two."""
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
    """Run a command in a terminal of :data:`COLUMNS` columns; returns what is on its screen in the end.

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
    """Variables of a user who has set none, in the environment that runs this."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("THAWLINE_", "MLFLOW_", "PREFECT_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**own, "PATH": path, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # as Linux says that the last process has closed it
        return b""


def svg(command: list[str], lines: list[Line]) -> str:
    """The recording: each line appears when it was written; where nothing moves, all lines are there at once."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.assemble(("$ ", "bold green"), (" ".join(command), "bold")))
        for line in lines:
            console.print(Text.from_ansi(line.text), no_wrap=True, crop=True)
        drawn = console.export_svg(title=" ".join(command), unique_id="demo")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # an image may load no fonts
    for row, seconds in enumerate(_delays(lines), start=1):
        shown = f'clip-path="url(#demo-line-{row})"'
        drawn = drawn.replace(shown, f'{shown} style="animation:appear 0.1s {seconds:.1f}s backwards"')
    return drawn.replace("</style>", f"{_APPEAR}\n</style>", 1)


def _delays(lines: list[Line]) -> list[float]:
    """Seconds after which each line appears: those of the run, without its long pauses."""
    delays, before, now = [], 0.0, 0.0
    for line in lines:
        now += min(max(0.0, line.seconds - before), _SHORTENED) / 2
        before = max(before, line.seconds)
        delays.append(now)
    return delays


def photograph(page: Path, target: Path) -> None:
    """The first screen of a page.

    Raises:
        RuntimeError: There is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("the picture of the report is taken by Chromium: install Debian's package chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    subprocess.run(
        [chromium, *quiet, f"--window-size={_WINDOW}", f"--screenshot={target}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )


def main() -> int:
    """Make both pictures; returns the exit code."""
    command = ["thawline", "demo"]
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = record(command, Path(folder))
        (IMAGES / "demo.svg").write_text(svg(command, lines), encoding="utf-8")
        subprocess.run(["thawline", "down"], cwd=folder, env=_environment(), check=True, capture_output=True)
        (page,) = Path(folder).glob(".thawline/studies/*/report/report.html")
        photograph(page, IMAGES / "report.png")
    large = [name for name, most in LARGEST.items() if (IMAGES / name).stat().st_size > most]
    for name in large:
        print(f"docs/images/{name} has more than {LARGEST[name]:,} bytes", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
