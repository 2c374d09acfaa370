"""Audit of published claims: which statements of a table are impossible or inconsistent, with the arithmetic."""

from stda.measure.claims.compare import compare, mcnemar
from stda.measure.claims.model import Claims, Finding, Row, Table
from stda.measure.claims.protocol import under_protocol
from stda.measure.claims.reading import parse, read
from stda.measure.claims.report import audit, audit_examples, example, examples, find, passed, run, summary, tally

__all__ = [
    "Claims",
    "Finding",
    "Row",
    "Table",
    "audit",
    "audit_examples",
    "compare",
    "example",
    "examples",
    "find",
    "mcnemar",
    "parse",
    "passed",
    "read",
    "run",
    "summary",
    "tally",
    "under_protocol",
]
