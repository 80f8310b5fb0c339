"""The gRPC side: Qdrant's services, each call turned into REST's models and an operation of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from qdrant_client import grpc as proto
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc, qdrant_pb2_grpc
from qdrant_client.http import models as rest

from tests.qdrant_standin.engine import Engine
from tests.qdrant_standin.errors import Cut, Kind, Refused
from tests.qdrant_standin.gate import Gate, Request

#: A server sets no limit to a message.
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
Call = Callable[[Engine, Any], Any]


def _optional(message: Any, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    return convert(getattr(message, name)) if message.HasField(name) else None


def _point_id(value: proto.PointId) -> Any:
    return GrpcToRest.convert_point_id(value)


def _payload(value: Any) -> Any:
    return GrpcToRest.convert_with_payload_interface(value)


def _creation(message: proto.CreateCollection) -> rest.CreateCollection:
    convert = GrpcToRest
    return rest.CreateCollection(
        vectors=_optional(message, "vectors_config", convert.convert_vectors_config),
        sparse_vectors=_optional(message, "sparse_vectors_config", convert.convert_sparse_vector_config),
        hnsw_config=_optional(message, "hnsw_config", convert.convert_hnsw_config_diff),
        wal_config=_optional(message, "wal_config", convert.convert_wal_config_diff),
        optimizers_config=_optional(message, "optimizers_config", convert.convert_optimizers_config_diff),
        quantization_config=_optional(message, "quantization_config", convert.convert_quantization_config),
        shard_number=_optional(message, "shard_number"),
        replication_factor=_optional(message, "replication_factor"),
        write_consistency_factor=_optional(message, "write_consistency_factor"),
        on_disk_payload=_optional(message, "on_disk_payload"),
        metadata=convert.convert_payload(message.metadata) or None,
    )


def _operation(kind: str) -> Callable[[Any], Any]:
    """Reads a call of its own as the operation of a batch that has the same fields."""

    def convert(message: Any) -> Any:
        whole = proto.PointsUpdateOperation()
        part = getattr(whole, kind)
        part.SetInParent()
        for descriptor, value in message.ListFields():
            if descriptor.name in part.DESCRIPTOR.fields_by_name:
                one = type(part)(**{descriptor.name: value})
                part.MergeFrom(one)
        return GrpcToRest.convert_points_update_operation(whole)

    return convert


def _write(kind: str) -> Call:
    convert = _operation(kind)

    def call(engine: Engine, message: Any) -> Any:
        (result,) = engine.update(message.collection_name, [convert(message)], message.wait)
        return _updated(result)

    return call


def _updated(result: rest.UpdateResult) -> Any:
    return proto.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))


def _update_batch(engine: Engine, message: Any) -> Any:
    operations = [GrpcToRest.convert_points_update_operation(one) for one in message.operations]
    results = engine.update(message.collection_name, operations, message.wait)
    return proto.UpdateBatchResponse(result=[RestToGrpc.convert_update_result(one) for one in results])


def _get(engine: Engine, message: Any) -> Any:
    found = engine.retrieve(
        message.collection_name,
        rest.PointRequest(
            ids=[_point_id(one) for one in message.ids],
            with_payload=_optional(message, "with_payload", _payload),
            with_vector=_optional(message, "with_vectors", GrpcToRest.convert_with_vectors_selector),
        ),
    )
    return proto.GetResponse(result=[_record(one) for one in found])


def _record(one: rest.Record) -> Any:
    """A record as protobuf, whose map of payloads knows no absence."""
    return RestToGrpc.convert_record(one if one.payload else one.model_copy(update={"payload": {}}))


def _scroll(engine: Engine, message: Any) -> Any:
    found, following = engine.scroll(
        message.collection_name,
        rest.ScrollRequest(
            offset=_optional(message, "offset", _point_id),
            limit=_optional(message, "limit"),
            filter=_optional(message, "filter", GrpcToRest.convert_filter),
            with_payload=_optional(message, "with_payload", _payload),
            with_vector=_optional(message, "with_vectors", GrpcToRest.convert_with_vectors_selector),
            order_by=_optional(message, "order_by", GrpcToRest.convert_order_by),
        ),
    )
    return proto.ScrollResponse(
        result=[_record(one) for one in found],
        next_page_offset=None if following is None else RestToGrpc.convert_extended_point_id(following),
    )


def _count(engine: Engine, message: Any) -> Any:
    asked = rest.CountRequest(
        filter=_optional(message, "filter", GrpcToRest.convert_filter), exact=_optional(message, "exact")
    )
    return proto.CountResponse(result=proto.CountResult(count=engine.count(message.collection_name, asked)))


def _hits(engine: Engine, message: Any) -> list[Any]:
    found = engine.query(message.collection_name, GrpcToRest.convert_query_points(message))
    return [RestToGrpc.convert_scored_point(one) for one in found]


def _query_batch(engine: Engine, message: Any) -> Any:
    return proto.QueryBatchResponse(
        result=[proto.BatchResult(result=_hits(engine, one)) for one in message.query_points]
    )


def _index(engine: Engine, message: Any) -> Any:
    schema = _optional(message, "field_index_params", GrpcToRest.convert_payload_schema_params)
    if schema is None and message.HasField("field_type"):
        schema = proto.FieldType.Name(message.field_type).removeprefix("FieldType").lower()
    return _updated(engine.create_index(message.collection_name, message.field_name, schema, message.wait))


def _unindex(engine: Engine, message: Any) -> Any:
    return _updated(engine.delete_index(message.collection_name, message.field_name, message.wait))


def _create_vector(engine: Engine, message: Any) -> Any:
    datatype = GrpcToRest.convert_datatype
    if message.HasField("dense_config"):
        dense = message.dense_config
        asked: Any = rest.DenseVectorNameConfig(
            dense=rest.DenseVectorConfig(
                size=dense.size,
                distance=GrpcToRest.convert_distance(dense.distance),
                multivector_config=_optional(
                    dense, "multivector_config", GrpcToRest.convert_multivector_config
                ),
                datatype=_optional(dense, "datatype", datatype),
            )
        )
    elif message.HasField("sparse_config"):
        sparse = message.sparse_config
        asked = rest.SparseVectorNameConfig(
            sparse=rest.SparseVectorConfig(
                modifier=_optional(sparse, "modifier", GrpcToRest.convert_modifier),
                datatype=_optional(sparse, "datatype", datatype),
            )
        )
    else:
        raise Refused(Kind.BAD_REQUEST, "Malformed vector config")
    return _updated(engine.create_vector(message.collection_name, message.vector_name, asked, message.wait))


def _delete_vector(engine: Engine, message: Any) -> Any:
    return _updated(engine.delete_vector(message.collection_name, message.vector_name, message.wait))


def _info(engine: Engine, message: Any) -> Any:
    info = RestToGrpc.convert_collection_info(engine.info(message.collection_name))
    return proto.GetCollectionInfoResponse(result=info)


def _list(engine: Engine, message: Any) -> Any:
    return proto.ListCollectionsResponse(
        collections=[proto.CollectionDescription(name=name) for name in engine.names()]
    )


def _exists(engine: Engine, message: Any) -> Any:
    found = proto.CollectionExists(exists=engine.exists(message.collection_name))
    return proto.CollectionExistsResponse(result=found)


def _done(result: bool) -> Any:
    return proto.CollectionOperationResponse(result=result)


def _alter(engine: Engine, message: Any) -> Any:
    return _done(engine.alter(message.collection_name, GrpcToRest.convert_update_collection(message)))


#: Every call that is known, by service; the generated base classes answer all others as not implemented.
CALLS: dict[str, dict[str, Call]] = {
    "Qdrant": {
        "HealthCheck": lambda engine, _: proto.HealthCheckReply(
            title="qdrant - vector search engine", version=engine.version
        )
    },
    "Collections": {
        "Get": _info,
        "List": _list,
        "CollectionExists": _exists,
        "Create": lambda engine, m: _done(engine.create(m.collection_name, _creation(m))),
        "Update": _alter,
        "Delete": lambda engine, m: _done(engine.delete(m.collection_name)),
    },
    "Points": {
        "Upsert": _write("upsert"),
        "Delete": _write("delete_points"),
        "UpdateVectors": _write("update_vectors"),
        "DeleteVectors": _write("delete_vectors"),
        "SetPayload": _write("set_payload"),
        "OverwritePayload": _write("overwrite_payload"),
        "DeletePayload": _write("delete_payload"),
        "ClearPayload": _write("clear_payload"),
        "UpdateBatch": _update_batch,
        "CreateFieldIndex": _index,
        "DeleteFieldIndex": _unindex,
        "CreateVectorName": _create_vector,
        "DeleteVectorName": _delete_vector,
        "Get": _get,
        "Scroll": _scroll,
        "Count": _count,
        "Query": lambda engine, m: proto.QueryResponse(result=_hits(engine, m)),
        "QueryBatch": _query_batch,
    },
}
_SERVICERS: dict[str, tuple[type, Callable[..., None]]] = {
    "Qdrant": (qdrant_pb2_grpc.QdrantServicer, qdrant_pb2_grpc.add_QdrantServicer_to_server),
    "Collections": (
        collections_service_pb2_grpc.CollectionsServicer,
        collections_service_pb2_grpc.add_CollectionsServicer_to_server,
    ),
    "Points": (points_service_pb2_grpc.PointsServicer, points_service_pb2_grpc.add_PointsServicer_to_server),
}


class GrpcServer:
    """Serves an engine on a Unix socket; `cut` resets the connections of its clients."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        socket_path: Path,
        cut: Callable[[], None],
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self._engine, self._gate, self._cut = engine, gate, cut
        self._server = grpc.server(ThreadPoolExecutor(16), options=_OPTIONS)
        for service, (base, register) in _SERVICERS.items():
            methods = {name: self._method(service, name, call) for name, call in CALLS[service].items()}
            register(type(service, (base,), methods)(), self._server)
        address = f"unix:{socket_path}"
        if tls is None:
            self._server.add_insecure_port(address)
        else:
            certificate, key = (path.read_bytes() for path in tls)
            self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _method(self, service: str, name: str, call: Call) -> Callable[..., Any]:
        operation = f"{service}.{name}"

        def method(_: Any, message: Any, context: grpc.ServicerContext) -> Any:
            began = time.monotonic()
            headers = {key.lower(): str(value) for key, value in context.invocation_metadata()}
            collection = getattr(message, "collection_name", None)
            size = message.ByteSize()
            request = Request(operation, f"/qdrant.{service}/{name}", collection, size, message)
            try:
                answer = self._gate.enter(request, headers.get, lambda: self._call(call, message))
            except Refused as refused:
                trailing = []
                if refused.retry_after is not None:
                    trailing.append(("retry-after", str(refused.retry_after)))
                if refused.kind is Kind.INSUFFICIENT_STORAGE:
                    trailing.append(("qdrant-insufficient-storage", "1"))
                context.set_trailing_metadata(trailing)
                context.abort(refused.kind.code, str(refused))
            except Cut:
                self._cut()
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was closed")
            if "time" in answer.DESCRIPTOR.fields_by_name:
                answer.time = time.monotonic() - began
            return answer

        return method

    def _call(self, call: Call, message: Any) -> Any:
        try:
            return call(self._engine, message)
        except ValueError as error:
            # The conversions raise it for a message that lacks a part it must have.
            raise Refused(Kind.BAD_REQUEST, str(error).splitlines()[0]) from error
