"""Look at the site as a browser shows it: light, dark, and on a phone.

    python -m mkdocs build --strict
    python docs/take_screenshots.py                    # pages of PAGES
    python docs/take_screenshots.py guide/inspection   # one page

Saves a picture of each page, whole, in ``site-screenshots/``, and fails where a page
scrolls sideways, where text or code is cut off with no way to scroll to it, where a
picture or a formula did not load, and where a script failed.
Needs Chromium with its driver (``apt-get install chromium chromium-driver``) and
``pip install selenium``.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# The pages that people come for, and those with the widest content.
PAGES = (
    "",
    "quickstart",
    "install",
    "guide",
    "guide/inspection",
    "guide/calibration",
    "guide/baselines",
    "examples",
    "examples/survivors_and_weights",
    "api/cascade",
    "background/methods",
    "background/benchmarks",
)
# Width and height in CSS pixels, and the colours that the reader's system asks for.
VIEWS = {
    "light": (1280, 800, "light"),
    "dark": (1280, 800, "dark"),
    "phone": (390, 844, "light"),
}

# What a reader cannot get at. Blocks that scroll by themselves are fine, and what
# lies inside them too.
FIND_FAULTS = """
const wide = document.documentElement.clientWidth + 1;
const faults = [];
if (document.documentElement.scrollWidth > wide) faults.push(
  `the page scrolls sideways: ${document.documentElement.scrollWidth} px wide`);
const name = e => `<${e.tagName.toLowerCase()} class="${e.className}"> ` +
  (e.textContent || "").trim().slice(0, 60);
for (const e of document.querySelectorAll(".md-content *")) {
  if (e.closest(".katex-mathml")) continue;  // for screen readers, clipped
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height) continue;
  const style = getComputedStyle(e);
  if (e.scrollWidth > e.clientWidth + 1 && style.overflowX === "hidden"
      && style.textOverflow !== "ellipsis" && e.clientWidth > 1)
    faults.push("cut off: " + name(e));
  if (box.right <= wide) continue;
  let reachable = false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(p).overflowX)) reachable = true;
  if (!reachable && style.position !== "absolute" && !e.closest("svg"))
    faults.push("beyond the right edge: " + name(e));
}
if (document.documentElement.clientWidth > 1000)
  for (const e of document.querySelectorAll("pre > code, .katex-display"))
    if (e.scrollWidth > e.clientWidth + 1)
      faults.push("has to be scrolled on a large screen: " + name(e));
for (const i of document.images)
  if (!i.complete || (i.naturalWidth === 0 && i.offsetWidth > 0))
    faults.push("picture not loaded: " + i.src);
for (const m of document.querySelectorAll(".arithmatex"))
  if (!m.querySelector(".katex")) faults.push("formula not drawn: " + name(m));
return faults;
"""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives the address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium without a window, and without talking to other hosts."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for switch in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--hide-scrollbars"),
    ):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(shutil.which("chromedriver"))
    )
    # Before any script of a page: the theme remembers the colours of the page before.
    driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "localStorage.clear()"}
    )
    try:
        yield driver
    finally:
        driver.quit()


def look_at(driver: Any, address: str, view: str, picture: Path) -> list[str]:
    """Save a picture of a page as one view shows it, and list its faults."""
    width, height, scheme = VIEWS[view]
    metrics = {"width": width, "height": height, "mobile": view == "phone"}
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", metrics | {"deviceScaleFactor": 1}
    )
    preferred = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preferred]})
    driver.get(address)
    driver.execute_script("return document.fonts.ready")
    # Pictures below the fold load late unless they are asked for.
    driver.execute_script(
        "for (const i of document.images) i.loading = 'eager';"
        "return Promise.all([...document.images].filter(i => i.offsetWidth)"
        ".map(i => i.decode().catch(() => {})))"
    )
    faults = list(driver.execute_script(FIND_FAULTS))
    faults += [entry["message"] for entry in driver.get_log("browser")]
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True}
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(base64.b64decode(shot["data"]))
    return faults


def main(argv: list[str] | None = None) -> int:
    """Look at the pages, and print what is wrong; the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="paths in the site; default: PAGES")
    parser.add_argument("--site", type=Path, default=ROOT / "site")
    parser.add_argument("--output", type=Path, default=ROOT / "site-screenshots")
    args = parser.parse_args(argv)
    if not (args.site / "index.html").exists():
        parser.error(f"{args.site} holds no site: python -m mkdocs build --strict")
    count = 0
    with serve(args.site) as host, browser() as driver:
        for page in args.pages or PAGES:
            address = f"{host}/{page}/" if page else f"{host}/"
            for view in VIEWS:
                picture = args.output / f"{page.replace('/', '-') or 'home'}-{view}.png"
                faults = look_at(driver, address, view, picture)
                count += len(faults)
                for fault in faults:
                    print(f"{page or 'home'} ({view}): {fault}")
    print(f"{count} faults; pictures in {args.output}")
    return count


if __name__ == "__main__":
    sys.exit(bool(main()))
