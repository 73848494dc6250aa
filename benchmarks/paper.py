"""The paper's comparison: client computation and bandwidth counted anew, and accuracy against them really trained.

A cell is one run. Cells that ``docs/benchmarks/paper.json`` has already are not run again, so this can be ended and started again at any
time; the page is written from what is there. All of it takes about an hour of one core, the first page ten minutes.

    python -m benchmarks.paper [--jobs 1] [--only TEXT] [--again]     writes docs/benchmarks/paper.md, paper.json and the plots
    python -m benchmarks.paper --only nothing                         the page alone
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.cells import cell_arguments, missing, run_cells, stored
from benchmarks.common import PAGES
from benchmarks.paper_page import write_paper_page
from benchmarks.paper_runs import cells, counted_work, prepare_data, run_cell
from benchmarks.paper_tables import tables

__all__ = ["main"]

RESULTS = PAGES / "paper.json"


def main() -> None:
    arguments = cell_arguments(__doc__, jobs=1).parse_args()
    _count_costs(again=arguments.again)
    todo = missing(cells(), RESULTS, arguments)
    with tempfile.TemporaryDirectory(prefix="cutlayer-paper-data-") as folder:
        prepare_data(todo, Path(folder))
        run_cells(todo, RESULTS, lambda cell: run_cell(cell, Path(folder)), jobs=arguments.jobs, kept=write_paper_page)
    write_paper_page(stored(RESULTS))


def _count_costs(*, again: bool) -> None:
    """What the cells' costs are worked out with: kept like a cell's result."""
    results = stored(RESULTS)
    for key, count in (("tables", tables), ("work", lambda: asdict(counted_work()))):
        if again or key not in results:
            results[key] = count()
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
