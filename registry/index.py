"""How a collection's vectors are stored and indexed: data of the plan that decides cost, never values."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from registry.errors import PlanError

Quantization = Literal["", "int8", "binary"]

#: Qdrant's own defaults: edges per node, candidates while building, and the size below which comparing with
#: each vector is faster than a graph. Kilobytes.
M = 16
EF_CONSTRUCT = 100
FULL_SCAN_KB = 10_000


class VectorIndex(BaseModel):
    """Storage and graph of one dense or multi-vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Edges per node of the HNSW graph; 0: no graph, every search compares with each vector.
    m: int = Field(default=M, ge=0, le=512)
    #: Candidates looked at while the graph is built.
    ef_construct: int = Field(default=EF_CONSTRUCT, ge=4, le=10_000)
    full_scan_kb: int = Field(default=FULL_SCAN_KB, ge=10)
    #: A smaller copy to search in; results are rescored with the vectors themselves.
    quantization: Quantization = ""
    #: The share of values that int8 spreads its 256 steps over; the rest is clipped. None: all of them.
    quantile: float | None = Field(default=None, ge=0.5, le=1.0)
    #: Whether the quantized copy stays in memory.
    always_ram: bool = True
    #: Stored as float16 instead of float32.
    half: bool = False
    #: Read from disk when needed instead of being kept in memory.
    on_disk: bool = False
    graph_on_disk: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.quantile is not None and self.quantization != "int8":
            raise PlanError("an index has a quantile, which only int8 quantization knows")
        return self


#: Hundreds of rows per point: a graph over them costs more than everything else together, and they serve to
#: reorder few candidates. So no graph, half the bytes, on disk.
MULTI = VectorIndex(m=0, half=True, on_disk=True)


class Index(BaseModel):
    """Storage and graphs of a whole collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: VectorIndex = VectorIndex()
    multi: VectorIndex = MULTI
    #: Whether the inverted index of sparse vectors is read from disk.
    sparse_on_disk: bool = False
    #: Whether payloads are read from disk when needed.
    payload_on_disk: bool = True
    #: By vector name, where one differs from its kind's.
    vectors: dict[str, VectorIndex] = Field(default_factory=dict)


#: Indexes by the name that `--index` takes.
PROFILES: dict[str, Index] = {
    "default": Index(),
    # The collection of the V4 pipeline.
    "v4": Index(dense=VectorIndex(m=48, ef_construct=512, quantization="int8", quantile=0.99)),
    # For more vectors than memory holds: only the quantized copies stay there.
    "low-memory": Index(dense=VectorIndex(quantization="int8", quantile=0.99, on_disk=True)),
}
