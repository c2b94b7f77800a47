"""`vlatrack report`: what a run was, as files to keep, to send and to print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlatrack.errors import TrackerError
from vlatrack.tracking.printable import printable

if TYPE_CHECKING:
    from vlatrack.tracking.journal.records import JournalDamage


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    html: Annotated[bool, typer.Option("--html", help="The run's page as one file; the default.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Results and figures for print, A4.")] = False,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None,
        typer.Option(metavar="png|pdf|svg", help="Each figure as a file of its own, for a paper.", show_default=False),
    ] = None,
    tables: Annotated[bool, typer.Option("--tables", help="The results as CSV and as LaTeX (booktabs).")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the files; RUN/report if not given.", show_default=False)
    ] = None,
) -> None:
    """Write what a run was: its page as one HTML file, a PDF, figures for a paper, tables.

    The HTML file is also written at the end of every run, and logged to the trackers. It needs no other file, no
    network, and opens in any browser. With several runs and --output, each has a folder of its own there.

    Examples:

    [bold]vlatrack report runs/metaworld-quickstart/20260101-120000-ab12[/bold]

    [bold]vlatrack report RUN --figures pdf --tables --output paper/[/bold]

    [bold]vlatrack report runs/my-experiment/* --pdf --output reports/[/bold]
    """
    wants_html = html or not (pdf or figures or tables)
    for run in runs:
        if not (run / "journal.jsonl").is_file():
            raise TrackerError(f"{run}: no run directory (journal.jsonl is missing); give runs/<experiment>/<run-id>")
    for run in runs:
        folder = output or run / "report"
        if output is not None and len(runs) > 1:
            folder = output / run.resolve().name
        try:
            written = _write(run, folder, html=wants_html, pdf=pdf, figures=figures, tables=tables)
        except OSError as error:
            raise TrackerError(f"{error.filename or folder}: {error.strerror}; choose another --output") from error
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
    if (damaged := damage.told()) is not None:
        typer.echo(printable(f"{run}: {damaged}"))
    return written


def _write_results(run: Path, folder: Path, damage: "JournalDamage", *, pdf: bool, tables: bool) -> list[Path]:
    from vlatrack.reports.run_content import summary_of
    from vlatrack.reports.run_rows import RunReader
    from vlatrack.reports.tables import results_csv, results_latex

    row, summary, written = RunReader(run).row(), summary_of(run, damage=damage), []
    if tables:
        for file, text in (
            (folder / "results.csv", results_csv(summary)),
            (folder / "results.tex", results_latex(summary, caption=f"{row.id}, last and best values")),
        ):
            file.write_text(text, encoding="utf-8")
            written.append(file)
    if pdf:
        from vlatrack.reports.pdf_report import write_pdf_report
        from vlatrack.tracking.journal.history import metric_history

        history = metric_history(run / "journal.jsonl", damage=damage)
        written.append(write_pdf_report(row, summary, history, folder / "report.pdf"))
    return written
