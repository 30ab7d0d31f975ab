"""Texts to measure with: corpora that ship with the package, or the reader's own file."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from accel_lib.errors import TextError
from accel_lib.texts import corpora, files
from accel_lib.texts.questions import Questions as Questions
from accel_lib.texts.questions import ShortAnswer as ShortAnswer
from accel_lib.texts.questions import load_questions as load_questions
from accel_lib.texts.questions import load_short_answers as load_short_answers


@dataclasses.dataclass(frozen=True, repr=False)
class Texts(Sequence[str]):
    """Texts that passed `clean` and never change; a slice of them is `Texts` again.

    Parameters
    ----------
    items
        The texts.
    name
        What tables and plots call them.
    labels
        One label per text, or None.
    source
        Where they come from: ``"accel_lib"``, or the name of a file.

    Raises
    ------
    TextError
        From `clean`, or when there is not one label a text.
    """

    items: Sequence[str]
    _: dataclasses.KW_ONLY
    name: str = "texts"
    labels: tuple[str, ...] | None = None
    source: str = "code"

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(clean(self.items)))
        if self.labels is None:
            return
        object.__setattr__(self, "labels", tuple(self.labels))
        if len(self.labels) != len(self.items):
            raise TextError(
                "Each text needs one label.",
                seen=f"{len(self.items)} texts and {len(self.labels)} labels",
                fix="pass as many labels as texts, in the same order",
            )

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Texts: ...

    def __getitem__(self, index: int | slice) -> str | Texts:
        if not isinstance(index, slice):
            return self.items[index]
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, items=self.items[index], labels=labels)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<Texts {self._summary()}>"

    def _repr_html_(self) -> str:
        examples = "".join(f"<li>{html.escape(files.short(text))}</li>" for text in self.items[:3])
        return f"<p><b>{html.escape(self._summary())}</b></p><ul>{examples}</ul>"

    def _summary(self) -> str:
        counts = sorted(Counter(self.labels or ()).items())
        labels = f" ({', '.join(f'{count:,} {label}' for label, count in counts)})" if counts else ""
        return f"{self.name}: {len(self):,} texts{labels}, from {self.source}"


def clean(texts: Iterable[str]) -> list[str]:
    """Check texts before they are tokenized, and return them as they came.

    Raises
    ------
    TextError
        One is not a string, is blank or is not valid Unicode: the message names its index.
    """
    if isinstance(texts, str | bytes):
        raise TextError(
            "Texts come in a list, even a single one.", seen=files.short(repr(texts)), fix='pass ["your text"]'
        )
    checked = list(texts)
    for index, text in enumerate(checked):
        fault = files.fault(text)
        if fault:
            raise TextError(f"Text {index} {fault[0]}.", seen=files.short(repr(text)), fix=fault[1])
    return checked


def load_texts(
    source: str | Path = "mixed",
    *,
    column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Texts:
    """Load a corpus that ships with the package, or the reader's own file.

    Parameters
    ----------
    source
        ``"mixed"``: documents of 3 to 256 tokens, log-normal around a mean of 40; 512 of them, or `limit`.
        ``"short"``: search queries of 3 to 8 tokens.
        ``"passages"``: sentences on 39 subjects, one after the other.
        ``"sentiment-train"``, ``"sentiment-test"``: labelled reviews, and labelled messages of another style.
        Or a path, in UTF-8 or marked UTF-16: ``.txt`` (a text per line), ``.csv`` (separated by commas, semicolons or
        tabs), ``.tsv``, ``.jsonl`` or ``.parquet``. The first line of a table holds its columns' names.
    column, label_column
        The file's columns of texts (default: ``"text"``, or the only one) and of labels (default: none).
    limit
        At most this many texts, drawn at random, in their order.
    seed
        Of that draw, and of the documents of ``"mixed"``.

    Raises
    ------
    TextError
        It cannot be read: the message names the first text or line at fault.

    Examples
    --------
    >>> load_texts("short", limit=3)
    <Texts short: 3 texts, from accel_lib>
    """
    if limit is not None and limit < 1:
        raise TextError("There is no such number of texts.", seen=f"limit={limit}", fix="pass limit=1 or more")
    if not isinstance(source, str | Path):
        fix = "a list needs no loading: accel_lib.texts.Texts(your_list)"
        raise TextError("A corpus or a path is loaded.", seen=type(source).__name__, fix=fix)
    name = str(source)
    if name not in corpora.SHIPPED:
        path = Path(source).expanduser()
        table = files.read(path, shipped=corpora.SHIPPED)
        own_labels = tuple(table.labels(label_column)) if label_column else None
        own = Texts(table.texts(column), name=path.stem, labels=own_labels, source=path.name)
        return _draw(own, limit, seed)
    if column or label_column:
        raise TextError(f"The corpus {name!r} has no columns to choose.", fix=f"load_texts({name!r})")
    if name == "mixed":
        return Texts(corpora.mixed(limit or corpora.MIXED_COUNT, seed=seed), name=name, source="accel_lib")
    if name in ("short", "passages"):
        items = [line for line in corpora.lines(name) if line]
        return _draw(Texts(items, name=name, source="accel_lib"), limit, seed)
    reviews, labels = corpora.sentiment(name.removeprefix("sentiment-"))
    return _draw(Texts(reviews, name=name, labels=labels, source="accel_lib"), limit, seed)


def _draw(texts: Texts, limit: int | None, seed: int) -> Texts:
    if limit is None or limit >= len(texts):
        return texts
    chosen = np.sort(np.random.default_rng(seed).choice(len(texts), size=limit, replace=False)).tolist()
    labels = None if texts.labels is None else tuple(texts.labels[i] for i in chosen)
    return dataclasses.replace(texts, items=[texts.items[i] for i in chosen], labels=labels)
