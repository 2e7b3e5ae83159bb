"""The record of a run and its rows, one an example: their schema, their files, and what made them."""

from gradmem_bench.results.costs import (
    Alternative,
    Capacity,
    Costs,
    Measured,
    MeasuredFootprint,
    PhaseCosts,
    Quantity,
)
from gradmem_bench.results.files import ExampleLog, find_records, read_examples, read_record, write_record
from gradmem_bench.results.provenance import code_version, environment
from gradmem_bench.results.schema import (
    SCHEMA_VERSION,
    BackboneRecord,
    CodeVersion,
    Environment,
    ExampleRow,
    MethodRecord,
    MetricResult,
    ProfileRecord,
    RunRecord,
    Seal,
    SourceRecord,
    SwapTest,
    TaskRecord,
    TrainingRecord,
)
from gradmem_bench.results.scores import metric_results, questions, seal

__all__ = [
    "SCHEMA_VERSION",
    "Alternative",
    "BackboneRecord",
    "Capacity",
    "CodeVersion",
    "Costs",
    "Environment",
    "ExampleLog",
    "ExampleRow",
    "Measured",
    "MeasuredFootprint",
    "MethodRecord",
    "MetricResult",
    "PhaseCosts",
    "ProfileRecord",
    "Quantity",
    "RunRecord",
    "Seal",
    "SourceRecord",
    "SwapTest",
    "TaskRecord",
    "TrainingRecord",
    "code_version",
    "environment",
    "find_records",
    "metric_results",
    "questions",
    "read_examples",
    "read_record",
    "seal",
    "write_record",
]
