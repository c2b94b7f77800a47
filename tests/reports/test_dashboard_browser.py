"""The dashboard's pages as a person sees them, in a headless Chromium."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser_page
from dashboard_server import served

from vlatrack import start_run
from vlatrack.data.video import VideoWriter
from vlatrack.reports.html_report import read_run, write_comparison, write_report
from vlatrack.tracking.run import TrackedRun

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
AXE = os.environ.get("AXE_CORE", "")
"""Path of axe.min.js of axe-core, which looks for what keeps people out of a page."""


PRINTED_PIXELS = 703
"""Of the 186 mm between the margins of A4."""


@dataclass
class Shown:
    """A dashboard in a browser, with a run that goes on and one that is over."""

    address: str
    page: Page
    live: TrackedRun
    over: TrackedRun
    step: int = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            log_step(self.live, self.step)

    def run_page(self, run: TrackedRun) -> str:
        return f"{self.address}/run/toy/{run.run_id}"


def log_step(run: TrackedRun, step: int) -> None:
    names = ("closs", "loss_ct", "z_loss", "loss", *(f"l1_loss_action_{x}" for x in range(5, 10)))
    values = {f"train_{name}": (1 + number) * math.exp(-step / 50) for number, name in enumerate(names)}
    run.log({**values, "train_grad_norm": 1.0, "epoch": step / 20}, step=step)
    if step % 20 == 0:
        run.log({f"val_ind_{name}": 1.1 * values[f"train_{name}"] for name in names}, step=step)


def write_evaluation(run: TrackedRun) -> None:
    """Success rates and a video, as `vlatrack evaluate` leaves them."""
    folder = run.path / "evaluation" / "arena-step-00000040"
    (folder / "videos").mkdir(parents=True)
    rate = {"episodes": 4, "successes": 1, "errors": 1, "success_rate": 0.25, "wilson": [0.05, 0.7]}
    content = {"name": HOSTILE, "checkpoint": "step-00000040", "acting": {"route": "head", "blind": True}}
    tasks = {HOSTILE: rate, "push-with-a-name-that-is-long-enough-to-be-wider-than-a-telephone": rate}
    (folder / "evaluation.json").write_text(json.dumps({**content, "summary": {**rate, "tasks": tasks}}))
    video = VideoWriter(folder / "videos" / f"failure-0-{HOSTILE.replace('/', '%2f')}.mp4", fps=10, height=32, width=32)
    video.add(np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8))
    video.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    runs = tmp_path_factory.mktemp("runs")
    settings = {"train.epochs": 10, "train.batch_size": 4}
    with (
        start_run("toy", name=HOSTILE, runs=runs, backends=[], params={**settings, HOSTILE: HOSTILE}) as over,
        start_run("toy", name="the one that goes on", runs=runs, backends=[], params=settings) as live,
    ):
        for step in range(1, 41):
            log_step(over, step)
        over.log({"train_loss": math.nan, HOSTILE: 1.0}, step=41)
        over.event(HOSTILE, {"step": 30, "told": HOSTILE})
        finding = {"detector": "spike", "severity": "warning", "metric": "train_loss", "step": 30}
        over.event("health", {**finding, "message": HOSTILE, "remedy": "look"}, alert=True)
        grid = "split,epoch,route,step,X,dimension,l1\ntrain,0,token,0,5,0,0.25\ntrain,0,token,1,6,0,0.75\n"
        write_evaluation(over)
        (over.path / "evaluation" / "action_errors.csv").write_text(grid)
        (over.path / "spec.yaml").write_text(f"name: {HOSTILE}\n")
        over.finish("FAILED", reason=HOSTILE)
        with served(runs) as address, browser_page() as page:
            page.look(width=1280)
            shown = Shown(address, page, live, over)
            shown.train(25)
            yield shown


def test_values_appear_while_a_training_runs_without_a_reload(shown: Shown) -> None:
    page = shown.page
    page.open(shown.address)
    row = f"document.querySelector('tr[data-run=\"toy/{shown.live.run_id}\"]')"
    page.wait_for(f"{row}.textContent.includes('{shown.step} / 200')")
    page.evaluate("window.isTheSamePage = true")
    shown.train(5)
    page.wait_for(f"{row}.textContent.includes('{shown.step} / 200')", timeout_s=20.0)
    page.open(shown.run_page(shown.live))
    last = "[...document.querySelectorAll('.chart')].find((c) => c.textContent.startsWith('closs'))?.querySelector('b')"
    page.wait_for(f"{last}.textContent")
    page.evaluate("window.isTheSamePage = true")
    before = page.evaluate(f"{last}.textContent")
    shown.train(7)
    page.wait_for(f"{last}.textContent !== '{before}'", timeout_s=20.0)
    assert float(page.evaluate(f"{last}.textContent")) == pytest.approx(math.exp(-shown.step / 50), rel=1e-3)
    assert page.evaluate("window.isTheSamePage")


def pages_of(shown: Shown) -> dict[str, str]:
    chosen = "&".join(f"run=toy/{run.run_id}" for run in (shown.live, shown.over))
    return {
        "list": shown.address,
        "run": shown.run_page(shown.over),
        "comparison": f"{shown.address}/compare?{chosen}",
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 2560])
@pytest.mark.parametrize("name", ["list", "run", "comparison"])
def test_a_page_fits_its_window_complains_of_nothing_and_asks_nobody_else(
    shown: Shown, name: str, width: int, theme: str
) -> None:
    page = shown.page
    page.complaints.clear()
    page.addresses.clear()
    page.look(width=width, theme=theme)
    page.open(pages_of(shown)[name])
    page.wait_for("document.querySelector('h1') && document.querySelectorAll('table').length")
    page.evaluate("document.querySelectorAll('#evaluations details').forEach((one) => { one.open = true; })")
    page.evaluate("document.querySelector('.chart')?.scrollIntoView()")  # what is not seen is not drawn
    page.wait_for("!document.querySelector('.chart') || document.querySelector('.chart canvas')")
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert page.evaluate("window.hacked ?? null") is None
    assert page.evaluate(f"document.body.textContent.includes({HOSTILE!r})")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (theme == "dark")
    assert page.complaints == []
    assert [address for address in page.addresses if not address.startswith((shown.address, "data:"))] == []


@pytest.mark.skipif(not AXE, reason="AXE_CORE is not the path of axe.min.js")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["list", "run", "comparison"])
def test_a_page_can_be_read_by_everybody(shown: Shown, name: str, theme: str) -> None:
    page = shown.page
    page.look(width=1280, theme=theme)
    page.open(pages_of(shown)[name])
    page.wait_for("document.querySelector('h1') && document.querySelectorAll('table').length")
    page.evaluate(Path(AXE).read_text())
    found = page.evaluate("axe.run().then((r) => r.violations.map((v) => `${v.id}: ${v.nodes[0].target.join(' ')}`))")
    assert found == []


@pytest.mark.parametrize("runs", [1, 2])
def test_a_report_in_a_file_fits_every_window_and_a_printed_page(shown: Shown, tmp_path: Path, runs: int) -> None:
    page, read = shown.page, [read_run(run.path) for run in (shown.over, shown.live)]
    one, both = tmp_path / "report.html", tmp_path / "comparison.html"
    file = write_report(shown.over.path, one) if runs == 1 else write_comparison(read, both)
    page.complaints.clear()
    page.addresses.clear()
    page.open(file.as_uri())
    page.wait_for("document.querySelector('h1') && document.querySelectorAll('.chart').length")
    too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    for width in (360, 1280, 2560):
        page.look(width=width)
        page.box("document.querySelector('.chart')")
        page.wait_for("document.querySelector('.chart canvas')")
        assert page.evaluate(too_wide) == 0
    page.look(width=PRINTED_PIXELS)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for("[...document.querySelectorAll('figure.chart')].every((one) => one.querySelector('canvas, video'))")
    page.evaluate(f"window.beyond = (one) => one.getBoundingClientRect().right > {PRINTED_PIXELS + 1}")
    found = "[...document.querySelectorAll('main *')].filter(beyond).map((one) => one.tagName + one.textContent)"
    assert page.evaluate(found) == []
    page.call("Emulation.setEmulatedMedia", media="")
    assert page.evaluate("window.hacked ?? null") is None
    assert page.evaluate(f"document.body.textContent.includes({HOSTILE!r})")
    assert page.complaints == []
    assert [address for address in page.addresses if not address.startswith((file.as_uri(), "data:"))] == []


def test_the_keyboard_reaches_runs_and_the_values_of_charts(shown: Shown) -> None:
    page = shown.page
    page.look(width=1280)
    page.open(shown.address)
    page.wait_for("document.querySelectorAll('tbody tr').length === 2")
    page.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    for _ in range(40):
        page.press("Tab")
        if page.evaluate(f"document.activeElement.getAttribute('href') === '/run/toy/{shown.over.run_id}'"):
            break
    page.press("Enter")
    page.wait_for("location.pathname.startsWith('/run/') && document.querySelector('.chart canvas')")
    page.evaluate("document.querySelector('.chart').focus()")
    page.press("ArrowLeft")
    assert page.wait_for("document.querySelector('.chart .at')?.textContent")
    ends = page.evaluate("document.querySelector('.chart').getAttribute('aria-label')")
    assert ends.startswith("closs; train: from 0.98")


PLOT = "document.querySelector('.chart .u-over')"
NOTE = "document.querySelector('.chart .mark-note:not([hidden])')?.textContent"
POINTS = "[...VT.view.charts][0].plot.data[0]"


@pytest.mark.parametrize("x", ["step", "epoch", "time", "samples"])
def test_a_stretch_that_is_dragged_over_is_shown_in_detail_and_stays_while_the_run_goes_on(
    shown: Shown, x: str
) -> None:
    page = shown.page
    page.look(width=1280)
    shown.train(max(0, 45 - shown.step))  # further than the run that is over, whose steps would hide the new ones
    both = f"{shown.address}/compare?run=toy/{shown.live.run_id}&run=toy/{shown.over.run_id}"
    for address in (f"{shown.run_page(shown.live)}?x={x}", f"{both}&x={x}"):
        page.open(address)
        page.wait_for(
            "document.querySelector('#connection').textContent === 'live' && document.querySelector('canvas')"
        )
        left, top, width, height = page.box(PLOT)
        page.drag(left + 0.25 * width, left + 0.75 * width, top + height / 2)
        page.wait_for("VT.view.fine.size && location.search.includes('zoom=')")
        zoomed = page.evaluate("VT.view.zoom")
        low, high = page.evaluate(f"[Math.min(...{POINTS}), Math.max(...{POINTS})]")
        assert low < zoomed[0] < zoomed[1] < high
        shown.train(2)
        page.wait_for(f"Math.max(...{POINTS}) > {high}", timeout_s=20.0)
        assert page.evaluate("VT.view.zoom") == zoomed
        page.double_click(left + width / 2, top + height / 2)
        page.wait_for("VT.view.zoom === null && !location.search.includes('zoom=')")


def test_marks_say_what_happened_to_who_points_or_goes_through_them_by_keys(shown: Shown) -> None:
    page = shown.page
    page.look(width=1280)
    page.open(f"{shown.run_page(shown.over)}?zoom=20~40")
    page.wait_for("document.querySelector('.chart canvas') && VT.view.fine.size")
    left, top, width, height = page.box(PLOT)
    page.point(left + 0.1 * width, top + height / 2)
    assert not page.evaluate(NOTE)
    page.point(left + 0.5 * width + 2, top + height / 2)
    told = page.wait_for(NOTE)
    assert told.startswith("step 30 spike: ")
    assert HOSTILE in told
    page.evaluate("document.querySelector('.chart').focus()")
    page.press("Escape")
    assert not page.evaluate(NOTE)
    page.press("m")
    assert page.wait_for(NOTE) == told
    page.press("+")
    page.wait_for("VT.view.zoom[1] - VT.view.zoom[0] === 10")
    assert page.evaluate("window.hacked ?? null") is None


def test_an_evaluation_has_its_rates_and_videos_that_play(shown: Shown) -> None:
    page = shown.page
    page.look(width=1280)
    page.open(shown.run_page(shown.over))
    row = "document.querySelector('#evaluations tbody tr')"
    cells = page.wait_for(f"[...{row}.children].map((cell) => cell.textContent)")
    assert cells == ["all", "1 / 4", "25.0 %", "5.0 % \N{EN DASH} 70.0 %", "", "1"]
    page.evaluate("document.querySelector('#evaluations summary').click()")
    page.wait_for("document.querySelector('video').readyState >= 1")
    video = "document.querySelector('video')"
    page.evaluate(f"{video}.muted = true, {video}.play()")
    page.wait_for(f"{video}.currentTime > 0.1")
    assert page.evaluate(f"{video}.videoWidth") == 32
    assert page.evaluate("document.querySelector('#evaluations figcaption').textContent").endswith("failure")


def test_the_table_is_searched_and_sorted_by_keys_and_is_the_same_on_the_way_back(shown: Shown) -> None:
    page = shown.page
    page.look(width=1280)
    page.open(f"{shown.address}/?status=RUNNING&sort=train_loss&order=up")
    names = "[...document.querySelectorAll('tbody a')].map((one) => one.textContent)"
    page.wait_for(f"{names}.length === 1")
    assert page.evaluate("document.querySelector('[aria-sort=ascending]').dataset.key") == "train_loss"
    page.press("/")
    page.call("Input.insertText", text="GOES on")
    page.wait_for("new URLSearchParams(location.search).get('text') === 'GOES on'")
    page.press("ArrowDown")
    page.press("x")
    assert page.evaluate("document.querySelector('tbody input').checked")
    page.press("Enter")
    page.wait_for("location.pathname.startsWith('/run/') && document.querySelector('h1')")
    page.evaluate("history.back()")
    page.wait_for(f"location.pathname === '/' && {names}.length === 1")
    assert page.evaluate("document.querySelector('input[type=search]').value") == "GOES on"


def test_a_page_says_that_its_server_is_gone_and_goes_on_when_it_is_back(shown: Shown) -> None:
    page, runs = shown.page, shown.over.path.parent.parent
    with served(runs) as address:
        port = int(address.rpartition(":")[2])
        page.open(f"{address}/run/toy/{shown.live.run_id}")
        page.wait_for("document.querySelector('#connection.live') && document.querySelector('.facts')")
        page.evaluate("window.isTheSamePage = true")
    told = page.wait_for("document.querySelector('#connection.lost')?.textContent")
    assert told.startswith("no connection since")
    shown.train(3)
    with served(runs, port=port):
        page.wait_for(f"document.querySelector('.facts').textContent.includes('{shown.step} / 200')")
        assert page.evaluate("document.querySelector('#connection').textContent") == "live"
        assert page.evaluate("window.isTheSamePage")


def test_a_run_that_is_gone_and_a_lost_connection_are_said(shown: Shown) -> None:
    page = shown.page
    page.open(f"{shown.address}/run/toy/none")
    told = page.wait_for("document.querySelector('.problem:not([hidden])')?.textContent")
    assert told == "toy/none: not in this runs folder"
    page.open(f"{shown.address}/compare?run=toy/none")
    told = page.wait_for("document.querySelector('.problem:not([hidden])')?.textContent")
    assert told == "choose two runs or more in the list of runs, up to 20"
