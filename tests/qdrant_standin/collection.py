"""One collection: its configuration in a file, its points in an Edge shard."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client.http import models as rest

from tests.qdrant_standin.errors import Kind, Refused
from tests.qdrant_standin.words import named, shard_config, vector_creation

_CONFIG = "config.json"
_SHARD = "shard"
#: A server's defaults.
_HNSW = rest.HnswConfig(
    m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0, on_disk=False
)
_OPTIMIZER = rest.OptimizersConfig(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1000,
    default_segment_number=0,
    indexing_threshold=10_000,
    flush_interval_sec=5,
)
_WAL = rest.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0, wal_retain_closed=1)


class Collection:
    """An open collection; hold `lock` around what must not be torn apart."""

    def __init__(self, directory: Path, config: rest.CollectionConfig, shard: edge.EdgeShard) -> None:
        self.directory = directory
        self.config = config
        self.shard = shard
        self.lock = threading.RLock()
        self.operations = 0
        #: Whether anything has changed since the server started: before, its optimisers wait.
        self.changed = False
        self._indexed = 0

    @classmethod
    def create(cls, directory: Path, making: Path, asked: rest.CreateCollection) -> Collection:
        """Make an empty collection; `making` is where, until it is whole."""
        config = rest.CollectionConfig(
            params=rest.CollectionParams(
                vectors=asked.vectors or {},
                sparse_vectors=asked.sparse_vectors,
                shard_number=asked.shard_number or 1,
                replication_factor=asked.replication_factor or 1,
                write_consistency_factor=asked.write_consistency_factor or 1,
                on_disk_payload=True if asked.on_disk_payload is None else asked.on_disk_payload,
            ),
            hnsw_config=changed(_HNSW, asked.hnsw_config),
            optimizer_config=changed(_OPTIMIZER, asked.optimizers_config),
            wal_config=changed(_WAL, asked.wal_config),
            quantization_config=asked.quantization_config,
            metadata=asked.metadata,
        )
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        shard = edge.EdgeShard.create(str(making / _SHARD), shard_config(config.params, config.hnsw_config))
        shard.flush()
        shard.close()
        _write(making / _CONFIG, config)
        making.rename(directory)
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> Collection:
        config = rest.CollectionConfig.model_validate_json((directory / _CONFIG).read_bytes())
        return cls(directory, config, edge.EdgeShard.load(str(directory / _SHARD)))

    def info(self) -> rest.CollectionInfo:
        found = self.shard.info()
        return rest.CollectionInfo(
            status=self._status(found.points_count),
            optimizer_status=rest.OptimizersStatusOneOf.OK,
            indexed_vectors_count=self._indexed,
            points_count=found.points_count,
            segments_count=found.segments_count,
            config=self.config,
            payload_schema={
                path: rest.PayloadIndexInfo(
                    data_type=rest.PayloadSchemaType(str(index.data_type).rpartition(".")[2].lower()),
                    points=index.points,
                )
                for path, index in found.payload_schema.items()
            },
        )

    def _status(self, points: int) -> rest.CollectionStatus:
        """As if indexes were built between two looks, where the largest vector's size asks for them."""
        params = self.config.params
        largest = max((one.size for one in named(params.vectors).values()), default=0)
        threshold = self.config.optimizer_config.indexing_threshold
        wanted = points * (len(named(params.vectors)) + len(params.sparse_vectors or {}))
        if not threshold or points * largest * 4 < threshold << 10 or self._indexed == wanted:
            return rest.CollectionStatus.GREEN
        if not self.changed:
            return rest.CollectionStatus.GREY
        self._indexed = wanted
        return rest.CollectionStatus.YELLOW

    def alter(self, asked: rest.UpdateCollection) -> None:
        """Change the configuration: given fields replace, metadata is merged (null removes a key)."""
        with self.lock:
            # Metadata alone makes no optimiser anew.
            self.changed |= any(
                getattr(asked, key) is not None for key in type(asked).model_fields if key != "metadata"
            )
            config = self.config.model_copy(deep=True)
            config.optimizer_config = changed(config.optimizer_config, asked.optimizers_config)
            config.hnsw_config = changed(config.hnsw_config, asked.hnsw_config)
            config.params = changed(config.params, asked.params)
            dense = named(config.params.vectors)
            for name, diff in (asked.vectors or {}).items():
                if name not in dense:
                    raise Refused(Kind.BAD_INPUT, f"Not existing vector name error: {name}")
                vector = dense[name]
                if diff.hnsw_config is not None:
                    vector.hnsw_config = changed(
                        vector.hnsw_config or rest.HnswConfigDiff(), diff.hnsw_config
                    )
                vector.quantization_config = _quantisation(
                    vector.quantization_config, diff.quantization_config
                )
                vector.on_disk = vector.on_disk if diff.on_disk is None else diff.on_disk
            config.quantization_config = _quantisation(config.quantization_config, asked.quantization_config)
            if asked.metadata is not None:
                merged = {**(config.metadata or {}), **asked.metadata}
                config.metadata = {
                    k: v for k, v in merged.items() if k not in asked.metadata or v is not None
                }
            self._settle(config)

    def add_vector(self, name: str, asked: Any) -> None:
        """Add a named vector; the same one again changes nothing."""
        with self.lock:
            config = self.config.model_copy(deep=True)
            dense, sparse = named(config.params.vectors), dict(config.params.sparse_vectors or {})
            if isinstance(asked, rest.SparseVectorNameConfig):
                new = asked.sparse
                if name in dense:
                    raise Refused(Kind.BAD_INPUT, f"Vector `{name}` already exists as a dense vector")
                if name in sparse:
                    index = sparse[name].index
                    if (sparse[name].modifier, index and index.datatype) != (new.modifier, new.datatype):
                        raise Refused(
                            Kind.BAD_INPUT,
                            f"Sparse vector `{name}` already exists with a different configuration",
                        )
                    return
                sparse[name] = rest.SparseVectorParams(
                    index=None
                    if new.datatype is None
                    else rest.SparseIndexParams(datatype=rest.Datatype(new.datatype.value)),
                    modifier=new.modifier,
                )
            else:
                fields = asked.dense.model_dump()
                if name in sparse:
                    raise Refused(Kind.BAD_INPUT, f"Vector `{name}` already exists as a sparse vector")
                if name in dense:
                    if dense[name].model_dump(include=set(fields)) != fields:
                        raise Refused(
                            Kind.BAD_INPUT, f"Vector `{name}` already exists with a different configuration"
                        )
                    return
                dense[name] = rest.VectorParams(**fields)
            config.params.vectors, config.params.sparse_vectors = dense, sparse or None
            # The shard first: after a crash between the two, the repeated request adds it to both.
            self.shard.update(vector_creation(name, asked))
            self._settle(config)

    def remove_vector(self, name: str) -> None:
        with self.lock:
            config = self.config.model_copy(deep=True)
            dense, sparse = named(config.params.vectors), dict(config.params.sparse_vectors or {})
            if dense.pop(name, None) is None and sparse.pop(name, None) is None:
                raise Refused(Kind.BAD_INPUT, f"Not existing vector name error: {name}")
            config.params.vectors, config.params.sparse_vectors = dense, sparse or None
            self._settle(config)
            self.shard.update(edge.UpdateOperation.delete_vector_name(name))

    def close(self) -> None:
        with self.lock:
            self.shard.flush()
            self.shard.close()

    def _settle(self, config: rest.CollectionConfig) -> None:
        _write(self.directory / _CONFIG, config)
        self.config = config


def changed(standing: Any, diff: Any) -> Any:
    """A model with the fields that are given replaced."""
    if diff is None:
        return standing
    # "auto" threads are what is meant by none.
    given = {k: v for k, v in diff.model_dump(exclude_none=True).items() if v != "auto"}
    return type(standing).model_validate({**standing.model_dump(), **given})


def _quantisation(standing: Any, diff: Any) -> Any:
    if diff is None:
        return standing
    return None if isinstance(diff, rest.Disabled) else diff


def _write(path: Path, config: rest.CollectionConfig) -> None:
    new = path.with_suffix(".new")
    with new.open("w") as out:
        json.dump(config.model_dump(mode="json"), out)
        out.flush()
        os.fsync(out.fileno())
    new.rename(path)
