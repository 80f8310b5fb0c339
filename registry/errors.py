"""The one tree of errors. A message says what happened, to what, and what to do next."""


class V5Error(Exception):
    """Anything this project raises on purpose; the CLI prints it without a traceback."""

    #: What the `v5` command exits with when this error ends it.
    exit_code = 1


class UsageError(V5Error):
    """The command or the plan asks for something that cannot be."""

    exit_code = 2


class UnknownModel(UsageError):
    """A model name the registry does not have, or one that V5 removed."""


class PlanError(UsageError):
    """A plan that contradicts itself, its models, or the collection it is meant for."""


class SpaceMismatch(V5Error):
    """Vectors of one space were about to meet vectors of another."""


class CorpusError(UsageError):
    """A corpus that cannot be read at all."""


class WeightsError(V5Error):
    """A model's weights are absent, damaged, or not the ones the registry names."""


class GoldenMismatch(WeightsError):
    """A model gives other vectors than those its space was filled with."""


class CodecError(V5Error):
    """Bytes that are not what their label says: wrong magic, checksum, size or shape."""


class OtherVersion(CodecError):
    """A message whose meaning this process does not know: its sender is of another version."""


class BlobLost(V5Error):
    """A blob the ledger points at is not there."""


class InfrastructureError(V5Error):
    """Redis, Qdrant, the disk or the device is away; it says nothing against any chunk."""


class DeviceFailed(InfrastructureError):
    """The device, or the encoder on it, is of no more use to this process; a fresh one may mend that."""


class LedgerUnavailable(InfrastructureError):
    """Redis cannot be reached or refuses to serve."""


class LedgerUnfit(LedgerUnavailable):
    """Redis answers, but cannot serve the fleet until somebody mends it: too old, a replica, evicting, over
    TLS that is not trusted, or it refuses our login or a command."""


class LedgerFull(InfrastructureError):
    """Redis is at its `maxmemory` and refuses writes."""


class JobUnknown(UsageError):
    """A job id that the ledger does not have."""


class JobClosed(V5Error):
    """A job that takes no more batches: paused, sealed, done or cancelled."""


class LedgerRewound(V5Error):
    """Redis has lost data that a producer knows was there: the job, or its count of batches."""


class StoreUnavailable(InfrastructureError):
    """The vector store cannot be reached, opened or written."""


class StoreUnfit(StoreUnavailable):
    """The vector store answers, but cannot serve the fleet until somebody mends it: too old, read-only, or
    it does not accept the key."""


class Unanswered(InfrastructureError):
    """Nobody answered a request in time."""


class StoreRefused(V5Error):
    """The store will never accept this write, whatever the number of tries."""


class FleetError(V5Error):
    """A process of the fleet is missing, did not start, or did not answer in time."""


class EncodeError(V5Error):
    """An encoder failed on particular texts (a *data* failure)."""
