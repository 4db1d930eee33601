"""The result file, schema 1: what every key holds, and a check of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["STATUSES", "problems"]

NUMBER, OPTIONAL_NUMBER = (int, float), (int, float, type(None))
OPTIONAL_TEXT, OPTIONAL_OBJECT = (str, type(None)), (dict, type(None))
STATUSES = ("ok", "oom", "unsupported", "timeout")

DOCUMENT: dict[str, Any] = {
    "schema": int, "command": str, "time_utc": str, "smoke": bool, "nearlinear": dict, "versions": dict, "host": dict,
    "gpu": OPTIONAL_OBJECT, "tests": dict, "roof": dict, "rows": list,
}  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "nearlinear": {"version": str, "commit": OPTIONAL_TEXT, "dirty": (bool, type(None)), "build_info": dict},
    "versions": {"python": str, "torch": str, "triton": OPTIONAL_TEXT, "cuda": OPTIONAL_TEXT, "driver": OPTIONAL_TEXT},
    "host": {"cpu": str, "cores": int, "threads": int, "simd": str, "memory_gb": NUMBER},
    "gpu": {"name": str, "sm_clock_mhz": list, "memory_gb": NUMBER},
    "tests": {"status": str, "passed": int, "failed": int, "skipped": int, "commit": OPTIONAL_TEXT},
    "roof": {"copy_gbs": OPTIONAL_NUMBER, "gemm_tflops": dict},
}
ROW: dict[str, Any] = {
    "family": str, "op": str, "case": str, "dtype": str, "sizes": dict, "impl": str, "pass": str, "ms": OPTIONAL_OBJECT,
    "cpu_ms": OPTIONAL_NUMBER, "repeats": OPTIONAL_NUMBER, "bytes": OPTIONAL_NUMBER, "bytes_moved": OPTIONAL_NUMBER,
    "flops": OPTIONAL_NUMBER, "gbs": OPTIONAL_NUMBER, "tflops": OPTIONAL_NUMBER, "pct_roof": OPTIONAL_NUMBER, "peak_mb": OPTIONAL_NUMBER,
    "host_us": OPTIONAL_NUMBER, "compile_s": OPTIONAL_NUMBER, "error": OPTIONAL_OBJECT, "status": str, "reason": str,
}  # fmt: skip


def problems(document: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a result file; empty for a good one."""
    found = _fields(document, DOCUMENT, "document")
    if found:
        return found
    if document["schema"] != 1:
        return [f"schema must be 1, got {document['schema']}"]
    for part, fields in PARTS.items():
        if document[part] is not None:
            found += _fields(document[part], fields, part)
    if not document["rows"]:
        found.append("rows must not be empty")
    seen = set()
    for i, row in enumerate(document["rows"]):
        wrong = _fields(row, ROW, f"rows[{i}]")
        found += wrong or _row(row, f"rows[{i}]")
        key = json.dumps([row.get(name) for name in ("op", "case", "dtype", "sizes", "impl", "pass")])
        if key in seen:
            found.append(f"rows[{i}] repeats {key}")
        seen.add(key)
    return found


def _fields(values: Mapping[str, Any], fields: Mapping[str, Any], place: str) -> list[str]:
    found = [f"{place} lacks {key}" for key in fields if key not in values]
    return found + [
        f"{place}.{key} must be {kind}, got {values[key]!r}" for key, kind in fields.items() if key in values and not _is(values[key], kind)
    ]


def _is(value: Any, kind: Any) -> bool:
    # bool is an int to isinstance, and no figure here is a truth value
    return isinstance(value, kind) and (not isinstance(value, bool) or bool in (kind if isinstance(kind, tuple) else (kind,)))


def _row(row: Mapping[str, Any], place: str) -> list[str]:
    found = []
    if row["pass"] not in ("fwd", "full", "floor"):
        found.append(f"{place}.pass must be fwd, full or floor, got {row['pass']!r}")
    if row["status"] not in STATUSES:
        found.append(f"{place}.status must be one of {STATUSES}, got {row['status']!r}")
    if (row["status"] == "ok") != (row["ms"] is not None):
        found.append(f"{place} must have times exactly if its status is ok")
    if row["status"] != "ok" and not row["reason"]:
        found.append(f"{place} has status {row['status']} without a reason")
    if row["ms"] is not None:
        values = [row["ms"].get(key) for key in ("p20", "p50", "p80")]
        if not all(_is(value, NUMBER) for value in values) or values != sorted(values) or values[0] <= 0:
            found.append(f"{place}.ms must hold p20 <= p50 <= p80, all positive, got {row['ms']}")
    return found
