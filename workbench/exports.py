"""Records as programs read them: JSON, CSV and Parquet, a row each. Pure."""

import csv
import io
import json
from dataclasses import asdict

from workbench.job import Json
from workbench.ratios import Ratio
from workbench.record import Record, to_json
from workbench.report import Report


def as_json(report: Report) -> str:
    """Write the rows as one JSON list, each record with its `ratio`."""
    rows = [
        to_json(record) | {"ratio": plain(ratio) if ratio else None}
        for record, ratio in zip(report.records, report.ratios, strict=True)
    ]
    return json.dumps(rows, indent=1)


def plain(ratio: Ratio) -> Json:
    """Return a ratio as plain values, without an interval where it says nothing."""
    return asdict(ratio) | dict(zip(("low", "high"), ratio.interval, strict=True))


FLAT_FIELDS = {
    "phase": "string",
    **dict.fromkeys(("batch", "prompt", "context", "steps"), "int64"),
    **dict.fromkeys(("clock", "dtype", "device", "model", "status", "reason"), "string"),
}
"""Fields of the record that are columns as they are, by the kind of their values in Parquet."""
KINDS = {
    **FLAT_FIELDS,
    **dict.fromkeys(("backend", "ratio_to", "gpu", "run", "created"), "string"),
    "peak_bytes": "int64",
    "untuned": "bool",
}
"""The kinds of all columns but seconds, rates and ratios."""


def flat_rows(report: Report) -> list[Json]:
    """Turn each row into one level of plain values, with SI units in the names."""
    return [
        {"backend": record.name, **{name: getattr(record, name) for name in FLAT_FIELDS}}
        | flat_numbers(record, ratio)
        | {"gpu": record.gpu.get("name"), "run": record.run, "created": record.created}
        for record, ratio in zip(report.records, report.ratios, strict=True)
    ]


def flat_numbers(record: Record, ratio: Ratio | None) -> Json:
    """Return what was measured of a row; None where it could not be."""
    time = record.time_s
    return {
        "time_s": time.median if time else None,
        "low_s": time.low if time else None,
        "high_s": time.high if time else None,
        "tokens_per_s": record.tokens_per_s,
        "limit_share": record.limit_share,
        "ratio_to": ratio.to if ratio else None,
        "ratio": ratio.median if ratio else None,
        "ratio_low": ratio.interval[0] if ratio else None,
        "ratio_high": ratio.interval[1] if ratio else None,
        "build_cold_s": record.build_s.get("cold"),
        "build_warm_s": record.build_s.get("warm"),
        "build_cached_s": record.build_s.get("cached"),
        "untuned": record.untuned,
        "load_s": record.load_s,
        "peak_bytes": record.peak_bytes.get("total"),
        "error_ratio": record.error_ratio,
    }


def as_csv(report: Report) -> str:
    """Write one line a row, with SI units in the column names."""
    out = io.StringIO()
    rows = flat_rows(report)
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def as_parquet(report: Report) -> bytes:
    """Write the same columns as a Parquet file; needs pyarrow."""
    import pyarrow
    import pyarrow.parquet

    rows = flat_rows(report)
    schema = pyarrow.schema([(name, KINDS.get(name, "float64")) for name in rows[0]])
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), out)
    return out.getvalue()
