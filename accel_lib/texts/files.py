"""Read a reader's file of texts into columns; errors name the line, and no row is dropped."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_lib.errors import MissingDependencyError, TextError

_LONGEST_NAME = 3  # words that a column's name may have before it counts as a text
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The columns of file `name`, and the place of each row in it, such as ``"line 7"``."""

    name: str
    columns: dict[str, list[Any]]
    places: list[str]

    def texts(self, column: str | None = None) -> list[str]:
        """Values of a column (default: ``"text"``, or the only one); `TextError` if one is not a text."""
        if column is None:
            column = next(iter(self.columns)) if len(self.columns) == 1 else "text"
            self._check_name(column, words=1)
        return self._checked(column, self._column(column, "column"))

    def labels(self, column: str) -> list[str]:
        """Values of a column as label names; `TextError` if one is missing."""
        values = self._column(column, "label_column")
        return self._checked(column, [value if value is None else str(value) for value in values])

    def _column(self, column: str, keyword: str) -> list[Any]:
        if column in self.columns:
            return self.columns[column]
        for name in self.columns:
            self._check_name(name, words=_LONGEST_NAME)
        raise TextError(
            f"{self.name} has no column {column!r}.",
            seen=f"columns {', '.join(map(repr, self.columns))}",
            fix=f"load_texts({self.name!r}, {keyword}={next(iter(self.columns))!r}), if that is a column's name",
        )

    def _check_name(self, column: str, words: int) -> None:
        """Refuse a table whose first line is data, which would be lost as the name of a column."""
        if Path(self.name).suffix.lower() in (".csv", ".tsv") and len(column.split()) > words:
            raise TextError(
                f"{self.name}, line 1 looks like data, where the columns' names belong.",
                seen=short(repr(column)),
                fix=f"write their names above it, such as text; or, if this is one: column={short(column)!r}",
            )

    def _checked(self, column: str, values: list[Any]) -> list[str]:
        for place, value in zip(self.places, values, strict=True):
            found = fault(value)
            if found:
                raise TextError(f"{self.name}, {place}: {column!r} {found[0]}.", seen=short(repr(value)), fix=found[1])
        return values


def fault(text: object) -> tuple[str, str] | None:
    """What keeps a value from being a text, and what to do about it; None when it is one."""
    if text is None:
        return "is missing", "fill it in, or delete the row"
    if not isinstance(text, str):
        return f"is not a string but {type(text).__name__}", "pass strings: str(value)"
    if not text.strip():
        return "is empty", "fill it in, or delete it"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"is not valid Unicode: a lone surrogate at character {error.start}",
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")',
        )
    return None


def short(text: str, width: int = 90) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text[: 4 * width].split())
    return text if len(text) <= width else text[: width - 1] + "…"


def read(path: Path, *, shipped: Sequence[str]) -> Table:
    """Read a file by its suffix, one of `SUFFIXES`; `shipped` are names to offer where there is no such file.

    Raises
    ------
    TextError
        The file is missing, of another kind, neither UTF-8 nor marked as UTF-16, malformed or empty.
    MissingDependencyError
        A ``.parquet`` file without pyarrow to read it.
    """
    suffix = path.suffix.lower()
    if not _is_file(path):
        raise _missing(path, shipped)
    if suffix not in SUFFIXES:
        fix = f"save it as one of {', '.join(SUFFIXES)}"
        raise TextError(f"{path.name} is not a file of texts.", seen=suffix or "no suffix", fix=fix)
    table = _parquet(path) if suffix == ".parquet" else _parsed(path, suffix)
    if not table.places:
        raise TextError(f"{path.name} holds no texts.", seen="no rows", fix="write a text to each line or row")
    return table


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long to be one
        return False


def _missing(path: Path, shipped: Sequence[str]) -> TextError:
    there = sorted(file.name for suffix in SUFFIXES for file in path.parent.glob(f"*{suffix}"))
    return TextError(
        f"There is no corpus and no file named {short(path.name)!r}.",
        seen=f"beside it: {', '.join(there[:5])}" if there else None,
        fix=f"name a corpus ({', '.join(shipped)}) or the path of a file ({', '.join(SUFFIXES)})",
    )


def _parsed(path: Path, suffix: str) -> Table:
    text = _decoded(path)
    if suffix in (".csv", ".tsv"):
        return _csv(path.name, text, "\t" if suffix == ".tsv" else _delimiter(text))
    # Not splitlines: it also cuts at characters that may be inside a text.
    rows = text.removesuffix("\n").split("\n") if text else []
    places = [f"line {n}" for n in range(1, len(rows) + 1)]
    if suffix == ".txt":
        return Table(name=path.name, columns={"text": rows}, places=places)
    return _jsonl(path.name, rows, places)


def _decoded(path: Path) -> str:
    """The file's text in UTF-8, or in the encoding of its byte order mark, with Unix line ends."""
    try:
        data = path.read_bytes()
        text = data.decode(next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8"))
    except OSError as error:
        raise TextError(f"{path.name} cannot be read.", seen=error.strerror, fix=f"ls -l {path.name}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"byte 0x{error.object[error.start]:02x} at position {error.start:,}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        seen = f"a NUL byte in line {text[: text.index(chr(0))].count(chr(10)) + 1}"
        raise _not_utf8(path, seen, "UTF-16LE" if text.count("\0") > len(text) / 4 else "")
    return text


def _not_utf8(path: Path, seen: str, encoding: str = "WINDOWS-1252") -> TextError:
    name = shlex.quote(path.name)
    fix = f"save it as UTF-8, from Windows: iconv -f {encoding} -t UTF-8 {name} > {shlex.quote(f'utf8-{path.name}')}"
    delete = f"delete it: tr -d '\\000' < {name} > {shlex.quote(f'clean-{path.name}')}"
    return TextError(f"{path.name} is not UTF-8.", seen=seen, fix=fix if encoding else delete)


def _delimiter(text: str) -> str:
    """What separates the fields of a header: a comma, or what spreadsheets write where it is the decimal mark."""
    header = re.sub('"[^"]*"', "", text.split("\n", 1)[0])
    return next((mark for mark in ",;\t" if mark in header), ",")


def _csv(name: str, text: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = csv.field_size_limit(max(len(text), 1))
    line = 1
    try:
        header = next(reader, [])
        if header and header[0].startswith("sep="):  # a line by which Excel names the delimiter
            header = next(reader, [])
        rows, places = [], []
        while True:
            line = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                break
            rows.append(row or [""])  # a blank line is a row of one empty field
            places.append(f"line {line}")
            if len(rows[-1]) != len(header):
                raise csv.Error(f"{len(row)} fields under a header of {len(header)}")
        if len(set(header)) < len(header):
            raise csv.Error(f"two columns of one name in {', '.join(header)}")
    except csv.Error as error:
        fix = 'quote fields that hold a delimiter, a quote or a line break: "…", a quote inside as ""'
        seen = f"a quote that is never closed: {error}" if "end of data" in str(error) else error
        raise TextError(f"{name}, line {line} cannot be read.", seen=seen, fix=fix) from error
    finally:
        csv.field_size_limit(before)
    return Table(name=name, columns={key: [row[i] for row in rows] for i, key in enumerate(header)}, places=places)


def _jsonl(name: str, rows: list[str], places: list[str]) -> Table:
    records = []
    for place, row in zip(places, rows, strict=True):
        try:
            record = json.loads(row)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            fix = 'write one object a line: {"text": "…"}'
            raise TextError(f"{name}, {place} is not a JSON object.", seen=short(repr(row)), fix=fix)
        records.append(record)
    keys = dict.fromkeys(key for record in records for key in record)
    return Table(name=name, columns={key: [record.get(key) for record in records] for key in keys}, places=places)


def _parquet(path: Path) -> Table:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise MissingDependencyError(
            "pandas needs pyarrow to read a .parquet file.", seen=path.name, fix="python -m pip install pyarrow"
        ) from error
    except (ValueError, OSError) as error:
        fix = "write it again: frame.to_parquet(…)"
        raise TextError(f"{path.name} is not a valid parquet file.", seen=short(str(error)), fix=fix) from error
    plain = frame.astype(object).where(frame.notna(), None)
    columns = {str(key): plain[key].tolist() for key in plain.columns}
    return Table(name=path.name, columns=columns, places=[f"row {n}" for n in range(len(frame))])
