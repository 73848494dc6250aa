"""Writes the data of the examples from scikit-learn's digits and breast cancer tables: ``python examples/make_data.py``.

The breast cancer table is divided as two institutions might hold it: clinic A has the means of ten measurements and the diagnosis, clinic B
their standard errors and worst values. Each has patients that the other lacks, and rows in an order of its own.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from server.labels import write_labels

DATA = Path(__file__).with_name("data")
IDS_KEY = "two clinics"  # as in the run files
ONLY_A, ONLY_B = 25, 30  # patients of one clinic alone
TEST_EVERY = 5
LABELLED_EVERY = 10  # in the file of few labels


def digits() -> None:
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.uint8)
    test = np.arange(len(labels)) % TEST_EVERY == TEST_EVERY - 1
    arrays = {"x_train": images[~test], "y_train": labels[~test], "x_test": images[test], "y_test": labels[test]}
    np.savez_compressed(DATA / "digits.npz", **arrays)
    few = np.arange(len(arrays["y_train"])) % LABELLED_EVERY == 0
    arrays["y_train"] = np.where(few, arrays["y_train"], -1).astype(np.int64)
    np.savez_compressed(DATA / "digits-few-labels.npz", **arrays)


def breast_cancer() -> None:
    table = load_breast_cancer()
    names = [name.replace(" ", "_") for name in table.feature_names]
    order = np.random.default_rng(0).permutation(len(table.target))
    ids = [f"P{number:04d}" for number in order]
    malignant = 1 - table.target[order]
    values = table.data[order]
    large = (values[:, names.index("worst_area")] > np.median(values[:, names.index("worst_area")])).astype(int)
    both = slice(ONLY_A, len(ids) - ONLY_B)
    test = np.arange(len(ids)) % TEST_EVERY == TEST_EVERY - 1
    sizes = [at for at, name in enumerate(names) if "radius" in name or "perimeter" in name or "area" in name]
    mine = [at for at in range(10) if at not in sizes]
    theirs = [at for at in range(10, 30) if at not in sizes]
    for split, chosen in (("train", ~test), ("test", test)):
        a = [row for row in range(len(ids) - ONLY_B) if chosen[row]]
        b = [row for row in reversed(range(ONLY_A, len(ids))) if chosen[row]]
        _write(
            f"clinic-a-{split}",
            ["patient", *(names[at] for at in mine), "malignant"],
            [[ids[r], *values[r, mine], malignant[r]] for r in a],
        )
        _write(f"clinic-b-{split}", ["patient", *(names[at] for at in theirs)], [[ids[r], *values[r, theirs]] for r in b])
    for name, labels in (("malignant", malignant), ("large", large)):
        write_labels(DATA / f"{name}.csv", ids[both], labels[both], key=IDS_KEY.encode())


def _write(name: str, header: list[str], rows: list[list[object]]) -> None:
    with open(DATA / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows])


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    digits()
    breast_cancer()
