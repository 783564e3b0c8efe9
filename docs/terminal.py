"""Make docs/img/terminal.svg, the picture of a real run in README.md. Needs root, like every lab.

    .venv/bin/python docs/terminal.py           # run the commands in a lab, write docs/img/terminal.txt and the picture
    .venv/bin/python docs/terminal.py render    # only the picture, from docs/img/terminal.txt

terminal.txt is what the commands wrote to a terminal, with escape sequences, unedited and complete. The same file
always gives the same picture (tests/unit/docs/test_terminal.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "img" / "terminal.txt"
PICTURE = RECORD.with_suffix(".svg")
COMMANDS = (
    "nodenet lab up --nodes 2 -f examples/shop --name shop",
    "nodenet lab exec -n shop deploy/web --name shop -- curl -s http://api/ -w '\\n'",
    "nodenet lab probe --from attacker/mallory --to shop/db-0 --name shop",
    "nodenet observe --lab shop --type policy-verdict --type drop --traffic-direction ingress --last 3",
)
COLUMNS, ROWS = 124, 50
# Pixels. Every run of text says its own width, so the columns also meet with another monospace font.
FONT_SIZE, CHARACTER, LINE, MARGIN = 12, 7.2, 16, 14
# Select Graphic Rendition (ECMA-48): the codes that nodenet prints.
STYLES = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow"}
STYLE = f"""
text {{ font: {FONT_SIZE}px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; fill: #1f2328; white-space: pre }}
rect {{ fill: #f6f8fa; stroke: #d0d7de }}
.bold {{ font-weight: bold }} .dim {{ fill: #656d76 }}
.red {{ fill: #b3121d; font-weight: bold }} .green {{ fill: #116329; font-weight: bold }} .yellow {{ fill: #7d4e00 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #d6dde4 }} rect {{ fill: #0d1117; stroke: #3d444d }}
.dim {{ fill: #9198a1 }} .red {{ fill: #ff7b72 }} .green {{ fill: #56d364 }} .yellow {{ fill: #e3b341 }}
}}"""


def on_a_terminal(command: str) -> str:
    """What a shell command writes to a terminal. Raises CalledProcessError on an exit code above 1."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TERM": "xterm", "COLUMNS": str(COLUMNS)}
    done = subprocess.Popen(command, shell=True, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = bytearray()
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # EIO: the last process that had the other end is gone.
        pass
    os.close(ours)
    # 1 is an answer: the probed connection is denied.
    if done.wait() > 1:
        raise subprocess.CalledProcessError(done.returncode, command, bytes(written))
    return written.decode().replace("\r\n", "\n")


def record() -> str:
    """Run COMMANDS one after the other, then take the lab down. An older lab of that name is an error, and stays."""
    said = [on_a_terminal(COMMANDS[0])]
    try:
        said += map(on_a_terminal, COMMANDS[1:])
        return "".join(f"\033[1m$ {command}\033[0m\n{text}" for command, text in zip(COMMANDS, said, strict=True))
    finally:
        subprocess.run([sys.executable, "-m", "nodenet", "lab", "down", "--name", "shop"], check=False, cwd=ROOT)


def characters(line: str) -> Iterator[tuple[str, str]]:
    """Each printed character with its class names. Other escape sequences than STYLES are left out."""
    classes = ""
    for escaped, character in re.findall(r"\033\[([0-9;]*)m|(.)", line):
        if character:
            yield character, classes
        else:
            classes = " ".join(STYLES[code] for code in escaped.split(";") if code in STYLES)


def rows(text: str) -> Iterator[list[tuple[str, str]]]:
    """Lines, wrapped at COLUMNS as the terminal wraps them."""
    for line in text.splitlines():
        cells = list(characters(line))
        for start in range(0, max(len(cells), 1), COLUMNS):
            yield cells[start : start + COLUMNS]


def row_svg(cells: list[tuple[str, str]], y: int) -> str:
    """One <text> with one <tspan> for each run of equal style."""
    spans, start = [], 0
    while start < len(cells):
        end = start
        while end < len(cells) and cells[end][1] == cells[start][1]:
            end += 1
        words = escape("".join(character for character, _ in cells[start:end]))
        place = f'x="{MARGIN + start * CHARACTER:.1f}" textLength="{(end - start) * CHARACTER:.1f}"'
        spans.append(f'<tspan {place} class="{cells[start][1]}">{words}</tspan>'.replace(' class=""', ""))
        start = end
    return f'<text y="{y}" xml:space="preserve">{"".join(spans)}</text>'


def render(text: str) -> str:
    lines = [row_svg(cells, MARGIN + FONT_SIZE + LINE * number) for number, cells in enumerate(rows(text))]
    width, height = round(COLUMNS * CHARACTER) + 2 * MARGIN, LINE * len(lines) + 2 * MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    back = f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    return "\n".join((head, f"<style>{STYLE}\n</style>", back, *lines, "</svg>\n"))


if __name__ == "__main__":
    if sys.argv[1:] != ["render"]:
        RECORD.write_text(record())
    PICTURE.write_text(render(RECORD.read_text()))
