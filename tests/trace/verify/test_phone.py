"""Every page at the width of a phone, as Chromium lays it out.

Nothing reaches beyond the paper, what goes on to the right inside a box fades there until it is scrolled to its end,
and letters can be read.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from qwenref.tools.main import main
from qwenref.trace.show.names import Names
from qwenref.trace.show.page import stage_page
from qwenref.trace.show.view import view
from qwenref.trace.verify.report.frame import unbroken
from qwenref.trace.verify.report.html import page

from ..show.test_page import entry, softmax
from .test_pages import HOW, place  # noqa: F401  a fixture
from .test_report import FLAGS, parsed, planted

WIDTH = (
    390  # CSS pixels of a phone held upright; a window of headless Chromium has 500 at least, a frame inside has not
)
LEAST_PX = 8.5  # of a letter

MEASURE = """
const told = {};
const look = (name, d) => {
  const paper = d.documentElement, style = x => d.defaultView.getComputedStyle(x);
  d.querySelectorAll('details').forEach(x => x.open = true);
  const boxed = x => { for (let p = x.parentElement; p; p = p.parentElement)
    if (style(p).overflowX != 'visible') return true; return false };
  const beyond = [...d.querySelectorAll('body *')].filter(x => !x.closest('svg') && !boxed(x) &&
    x.getBoundingClientRect().right > paper.clientWidth + 1).map(x => x.tagName + ' ' + x.textContent.slice(0, 40));
  const letters = [...d.querySelectorAll('svg text')].map(x => { const m = x.getScreenCTM();
    return Math.hypot(m.a, m.b) * parseFloat(style(x).fontSize) });
  const boxes = [...d.querySelectorAll('.scroll, .wide')].filter(x => x.scrollWidth - x.clientWidth > 2);
  told[name] = { width: paper.scrollWidth, beyond, least: Math.min(...letters, 99), boxes: boxes.length,
    marked: boxes.filter(x => x.classList.contains('more')).length };
  boxes.forEach(x => { x.scrollLeft = x.scrollWidth; x.dispatchEvent(new Event('scroll')) });
  told[name].left = boxes.filter(x => x.classList.contains('more')).length;
};
addEventListener('load', () => { for (const f of document.querySelectorAll('iframe')) look(f.id, f.contentDocument);
  document.querySelector('pre').textContent = JSON.stringify(told) });
"""


def test_every_page_on_a_phone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    monkeypatch.chdir(tmp_path)
    v, wide = view(softmax()), view(entry("post_ffn_residual", np.random.default_rng(0).normal(size=(8, 64)) * 1e-3))
    pages = {
        "verify": page(planted(), "a-long-folder-of-dumps/" * 6, "an-organisation/" + "a-long-name-" * 8),
        "map": stage_page("/tmp/" + "d" * 120, v, [v], Names([], None)),
        "channels": stage_page("d", wide, [wide], Names([], None)),
    }
    assert main(["trace", str(place / "m.gguf"), *HOW, "--html", "trace.html"]) == 0
    assert main(["diff", str(place / "a"), str(place / "b"), "--html", "diff.html"]) == 1
    for name, html in pages.items():
        Path(f"{name}.html").write_text(html, "utf-8")
    names = [*pages, "trace", "diff"]
    frames = "".join(
        f'<iframe id="{n}" src="{n}.html" style="width: {WIDTH}px; height: 3000px"></iframe>' for n in names
    )
    style = "<style>iframe { border: 0 }</style>"
    Path("all.html").write_text(f"<!doctype html>{style}{frames}<pre></pre><script>{MEASURE}</script>", "utf-8")
    words = [*FLAGS, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [chromium, *words, (tmp_path / "all.html").as_uri()], check=True, capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert found is not None
    told = json.loads(unescape(found[1]))
    assert list(told) == names
    for name, t in told.items():
        assert (t["width"], t["beyond"]) == (WIDTH, []) and t["least"] >= LEAST_PX, (name, t)
        assert t["marked"] == t["boxes"] and t["left"] == 0, (name, t)
    assert told["verify"]["boxes"] > 1 < told["diff"]["boxes"]


def test_a_number_is_not_broken() -> None:
    html = unbroken("needs 4.401e-02 <of> it")
    assert html == 'needs <span class="whole">4.401e-02</span> &lt;of&gt; it' and parsed(html)
