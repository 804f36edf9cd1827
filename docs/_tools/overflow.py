"""Whether a page of the built site is wider than the screen: `python docs/_tools/overflow.py SITE`.

Every page is loaded in a frame of each width by a headless Chromium, which reports the pages that
scroll sideways, and what sticks out of the text without a scroll bar of its own. Without Chromium
nothing is checked, and it says so.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading

WIDTHS = (390, 1280)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 240
_CHECKER = "overflow-check.html"
_PAGE = """<!doctype html><pre id="found"></pre><script>
const pages = %s, widths = %s, found = [];
async function measure(page, width) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px";
  frame.style.height = "800px";
  frame.src = page;
  document.body.append(frame);
  await new Promise(loaded => frame.onload = loaded);
  const inside = frame.contentDocument, article = inside.querySelector("article");
  const limit = inside.documentElement.clientWidth + 1;
  const scrolls = e => {
    for (; e && e !== article; e = e.parentElement)
      if (/auto|scroll/.test(frame.contentWindow.getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const out = [...inside.querySelectorAll("article *")].filter(
    e => e.getBoundingClientRect().right > limit && !scrolls(e));
  const wide = inside.documentElement.scrollWidth;
  if (wide > width || out.length)
    found.push([page, width, wide, out.slice(0, 3).map(e => e.outerHTML.slice(0, 80))]);
  frame.remove();
}
(async () => {
  for (const page of pages) for (const width of widths) await measure(page, width);
  document.getElementById("found").textContent = JSON.stringify({done: pages.length, found});
})();
</script>"""


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def too_wide(site: pathlib.Path, chromium: str) -> list[str]:
    """A line for each page and width that scrolls sideways."""
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html"))
    checker = site / _CHECKER
    checker.write_text(_PAGE % (json.dumps(pages), json.dumps(WIDTHS)))
    handler = functools.partial(_Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{_CHECKER}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=200000"]
        command = [chromium, *options, "--dump-dom", address]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        finally:
            server.shutdown()
            checker.unlink()
    report = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout, re.DOTALL)
    if report is None:
        raise OSError(f"no report: {shown.stderr[-300:]}")
    result = json.loads(html.unescape(report[1]))
    assert result["done"] == len(pages)
    return [
        f"{page} on a screen of {width} pixels ({wide} in all): {'; '.join(parts)}"
        for page, width, wide, parts in result["found"]
    ]


def main(site: str) -> int:
    """Print what is too wide; 1 where something is."""
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    if chromium is None:
        print("no Chromium is installed: the width of the pages is not checked")
        return 0
    try:
        found = too_wide(pathlib.Path(site), chromium)
    except (OSError, subprocess.TimeoutExpired) as problem:  # of the browser, not of a page
        print(f"Chromium failed, and the width of the pages is not checked: {problem}")
        return 0
    print("\n".join(found) or "no page scrolls sideways")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
