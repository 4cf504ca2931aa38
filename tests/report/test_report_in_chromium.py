"""The page as a reader has it: in a browser, wide and narrow, dark and light, printed, with and without script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, browser, chromium
from made_run import make_run, metrics_of

from alignloop.report.pages import write_comparison, write_report

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed here (apt-get install chromium)")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("shown") / "run"))


@pytest.fixture(scope="module")
def reader() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def shown(reader: Browser) -> int:
    return int(reader.value("[...document.querySelectorAll('.dialog')].filter(d => d.offsetParent !== null).length"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_opens_alone_and_fits(report: Path, reader: Browser, width: int, dark: bool) -> None:
    reader.open(report, width=width, dark=dark)
    assert reader.complaints == []
    assert reader.requests == [report.as_uri()]
    assert reader.value("document.documentElement.scrollWidth") <= width
    background = reader.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    line = "getComputedStyle(document.querySelector('.chart svg [stroke=\"#1f5fbf\"]')).stroke"
    assert reader.value(line) == ("rgb(125, 177, 255)" if dark else "rgb(31, 95, 191)")
    # Letters of charts are read without zooming: at least 10 pixels high as drawn.
    size = (
        "Math.min(...[...document.querySelectorAll('.chart svg text')].map(t => parseFloat(t.getAttribute('font-size'))"
        " * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert reader.value(size) >= 10


def test_numbers_on_the_page_are_the_run_s(report: Path, reader: Browser) -> None:
    reader.open(report)
    values = "[...document.querySelectorAll('[data-table=\"climb-ifeval/mean\"] td')].map(cell => +cell.dataset.value)"
    rows = [json.loads(line) for line in (report.parent / "rounds.jsonl").read_text().splitlines()]
    assert reader.value(values) == [row["metrics"]["ifeval/mean"] for row in rows]
    assert rows[2]["metrics"]["ifeval/mean"] == metrics_of(2)["ifeval/mean"]


def test_labels_stay_in_their_charts(report: Path, reader: Browser) -> None:
    reader.open(report, width=360)
    outside = """[...document.querySelectorAll('.chart svg text')].filter(text => {
      const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
      return own.width && (own.left < all.left - 1 || own.right > all.right + 1);
    }).map(text => text.textContent)"""
    assert reader.value(outside) == []


def test_search_finds_prompts_and_answers(report: Path, reader: Browser) -> None:
    reader.open(report)
    assert shown(reader) == 5

    def search(words: str) -> None:
        reader.value(
            f"(() => {{ const input = document.querySelector('.search input'); input.value = {json.dumps(words)}; "
            "input.dispatchEvent(new Event('input')); })()"
        )

    search("two QUESTION")
    assert shown(reader) == 1
    search("measured 2")
    assert shown(reader) == 2
    assert reader.value("document.querySelector('.search output').textContent") == "2 of 5 prompts"
    search("")
    reader.value("document.querySelector('[name=changed]').click()")
    assert shown(reader) == 3
    assert reader.complaints == []


def test_without_script_all_is_there(report: Path, reader: Browser) -> None:
    reader.open(report, script=False)
    html = reader.call("DOM.getOuterHTML", nodeId=reader.call("DOM.getDocument")["root"]["nodeId"])["outerHTML"]
    assert html.count('<details class="dialog"') == 5
    assert '<form class="search" role="search" hidden' in html
    assert "dialog hidden" not in html


def test_what_models_wrote_stays_text(report: Path, reader: Browser) -> None:
    reader.open(report)
    reader.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert reader.value("document.querySelectorAll('img, iframe, object, embed, link[rel=stylesheet]').length") == 0
    assert reader.value("document.querySelectorAll('script').length") == 1
    text = reader.value("document.querySelector('.dialog .answer pre').textContent")
    assert '<script>alert("1")</script>' in text
    assert "⟦U+202E⟧" in text
    assert reader.complaints == []
    assert reader.requests == [report.as_uri()]


def test_it_prints(report: Path, reader: Browser, tmp_path: Path) -> None:
    reader.open(report, dark=True)
    answer = "document.querySelector('.dialog .answer').checkVisibility()"
    assert reader.value(answer) is False
    reader.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    # Print is light, whatever the screen is.
    reader.call("Emulation.setEmulatedMedia", media="print")
    assert reader.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert reader.value("getComputedStyle(document.querySelector('.search')).display") == "none"
    assert reader.value(answer) is True  # paper cannot be clicked open
    reader.call("Emulation.setEmulatedMedia", media="")


def test_several_runs_open_as_well(reader: Browser, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, rounds=2) for name in ("one", "two")]
    out = tmp_path / "both.html"
    write_comparison(runs, out=out)
    reader.open(out, width=360)
    assert reader.complaints == []
    assert reader.requests == [out.as_uri()]
    assert reader.value("document.documentElement.scrollWidth") <= 360
    assert shown(reader) == 5
