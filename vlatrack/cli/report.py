"""`vlatrack report`: what a run was, or how some runs compare, as files to keep, to send and to print."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlatrack.errors import TrackerError
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.tracking.journal.records import JournalDamage


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    html: Annotated[bool, typer.Option("--html", help="The page as one file; the default.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Results and figures for print, A4.")] = False,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None,
        typer.Option(metavar="png|pdf|svg", help="Each figure as a file of its own, for a paper.", show_default=False),
    ] = None,
    tables: Annotated[bool, typer.Option("--tables", help="The results as CSV and as LaTeX (booktabs).")] = False,
    each: Annotated[bool, typer.Option("--each", help="Of several runs a report each, no comparison.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the files; RUN/report, or comparison/ of several runs.", show_default=False),
    ] = None,
) -> None:
    """Write what a run was, or how several runs compare: a page as one HTML file, a PDF, figures for a paper, tables.

    The HTML file of a run is also written at its end, and logged to the trackers. It needs no other file, no network,
    and opens in any browser. Of 2 to 20 runs it is the dashboard's comparison: their lines over each other, the
    settings in which they differ, their best values. With --each, every run has a folder of its own in --output.

    Examples:

    [bold]vlatrack report runs/metaworld-quickstart/20260101-120000-ab12[/bold]

    [bold]vlatrack report RUN --figures pdf --tables --output paper/[/bold]

    [bold]vlatrack report RUN_A RUN_B --pdf[/bold]

    [bold]vlatrack report runs/my-experiment/* --each --output reports/[/bold]
    """
    html = html or not (pdf or figures or tables)
    for run in runs:
        if not (run / "journal.jsonl").is_file():
            raise TrackerError(f"{run}: no run directory (journal.jsonl is missing); give runs/<experiment>/<run-id>")
    folder = output or Path("comparison")
    try:
        if len(runs) > 1 and not each:
            written = _write_comparison(runs, folder, html=html, pdf=pdf, figures=figures, tables=tables)
            _tell(written)
            return
        for run in runs:
            folder = output or run / "report"
            if output is not None and len(runs) > 1:
                folder = output / run.resolve().name
            _tell(_write(run, folder, html=html, pdf=pdf, figures=figures, tables=tables))
    except OSError as error:
        raise TrackerError(f"{error.filename or folder}: {error.strerror}; choose another --output") from error


def _tell(written: Sequence[Path]) -> None:
    for file in written:
        typer.echo(f"written to {printable(str(file))}")


def _write(run: Path, folder: Path, *, html: bool, pdf: bool, figures: str | None, tables: bool) -> list[Path]:
    from vlatrack.tracking.journal.records import JournalDamage

    damage = JournalDamage(run / "journal.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if html:
        from vlatrack.reports.html_report import write_report

        written.append(write_report(run, folder / "report.html", damage=damage))
    if figures is not None:
        from vlatrack.reports.figures import write_figures

        written += write_figures(run, output=folder, kind=figures, damage=damage)
    if pdf or tables:
        written += _write_results(run, folder, damage, pdf=pdf, tables=tables)
    _tell_damage(run, damage)
    return written


def _tell_damage(run: Path, damage: "JournalDamage") -> None:
    if (damaged := damage.told()) is not None:
        typer.echo(printable(f"{run}: {damaged}"))


def _write_results(run: Path, folder: Path, damage: "JournalDamage", *, pdf: bool, tables: bool) -> list[Path]:
    from vlatrack.reports.run_content import summary_of
    from vlatrack.reports.run_rows import RunReader
    from vlatrack.reports.tables import results_csv, results_latex

    row, summary, written = RunReader(run).row(), summary_of(run, damage=damage), []
    if tables:
        latex = results_latex(summary, caption=f"{row.id}, last and best values")
        written += _write_texts({folder / "results.csv": results_csv(summary), folder / "results.tex": latex})
    if pdf:
        from vlatrack.reports.figures import FigureNotes
        from vlatrack.reports.pdf_report import write_pdf_report
        from vlatrack.tracking.journal.history import metric_history

        history = metric_history(run / "journal.jsonl", damage=damage)
        notes = FigureNotes.of_run(run, history, damage=damage)
        written.append(write_pdf_report(row, summary, history, folder / "report.pdf", notes))
    return written


def _write_comparison(
    runs: Sequence[Path], folder: Path, *, html: bool, pdf: bool, figures: str | None, tables: bool
) -> list[Path]:
    from vlatrack.reports.comparison_content import MOST_COMPARED
    from vlatrack.reports.html_report import read_run, write_comparison

    if len(runs) > MOST_COMPARED:
        raise TrackerError(
            f"{len(runs)} runs: at most {MOST_COMPARED} can be told apart in one comparison; give fewer, or --each"
        )
    read = [read_run(run.resolve()) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_comparison(read, folder / "comparison.html")] if html else []
    if tables:
        from vlatrack.reports.comparison_report import comparison_csv, comparison_latex

        csv, latex = folder / "comparison.csv", folder / "comparison.tex"
        written += _write_texts({csv: comparison_csv(read), latex: comparison_latex(read)})
    if pdf or figures is not None:
        from vlatrack.reports.comparison_report import write_comparison_figures, write_comparison_pdf
        from vlatrack.tracking.journal.history import metric_history

        histories = [metric_history(series.path, damage=series.damage) for _, series in read]
        if figures is not None:
            written += write_comparison_figures(read, histories, output=folder, kind=figures)
        if pdf:
            written.append(write_comparison_pdf(read, histories, folder / "comparison.pdf"))
    for run, (_, series) in zip(runs, read, strict=True):
        _tell_damage(run, series.damage)
    return written


def _write_texts(files: dict[Path, str]) -> list[Path]:
    from vlatrack.reports.line_files import replace_text

    for file, text in files.items():
        replace_text(file, text)
    return list(files)
