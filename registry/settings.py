"""Settings of every process: `V5_*` in the environment or in `.env`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.errors import UsageError

MIB = 1 << 20


class Settings(BaseSettings):
    """One process' settings. Sizes are bytes, times seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="V5_", env_file=".env", extra="ignore", frozen=True)

    #: Where a local fleet keeps everything: Redis' files, the store, logs.
    data_dir: Path = Field(default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share") / "v5")
    #: Where exported and prepared weights are cached; survives the data directory.
    cache_dir: Path = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache") / "v5")
    #: Redis or Valkey of the ledger; empty: the private server of the local fleet.
    redis_url: str = ""
    #: Celery's broker; empty: the same as redis_url.
    broker_url: str = ""
    #: Servers for blobs, chosen by batch; empty: the same as redis_url.
    blob_urls: tuple[str, ...] = ()
    #: A Qdrant server; empty: the embedded store in the data directory.
    qdrant_url: str = ""
    #: Snapshot directories by model name, for weights that are already on disk.
    weights: dict[str, Path] = Field(default_factory=dict)
    #: Device of this process' encoder: `cpu`, `cuda:0`, …; empty: the first CUDA device, else the CPU (said).
    device: str = ""
    #: CPU threads of a forward pass; 0: all cores this process may use.
    threads: int = Field(default=0, ge=0)
    #: Serve made-up vectors, in spaces of their own (tests, rehearsals).
    fake_encoders: bool = False
    #: Seconds one fake forward pass takes per chunk.
    fake_seconds: float = Field(default=0.0, ge=0)

    #: A step's lease: how long a silent worker keeps a batch from the others.
    lease_seconds: float = Field(default=60.0, gt=0)
    #: How long a rung step may stay untouched before the reconciler rings again.
    ring_seconds: float = Field(default=30.0, gt=0)
    #: How often the reconciler looks.
    reconcile_seconds: float = Field(default=2.0, gt=0)
    #: A process that has not said it lives for this long is taken for dead.
    alive_seconds: float = Field(default=15.0, gt=0)
    #: Blobs of an open batch are renewed well before this; an orphan dies after it.
    blob_ttl_seconds: int = Field(default=3 * 86400, gt=60)
    #: Text and reserved vectors in flight, over all producers.
    #: 0: half of the blob server's maxmemory, or 1 GiB where it has none.
    inflight_bytes: int = Field(default=0, ge=0)

    #: A batch is closed at this many chunks …
    batch_chunks: int = Field(default=128, ge=1, le=8192)
    #: … or at this much text, whichever comes first.
    batch_bytes: int = Field(default=MIB // 4, ge=1024)
    #: So many chunks are read ahead and sorted by length before batches are cut.
    window_chunks: int = Field(default=2048, ge=1, le=10_000)
    #: … or this much text.
    window_bytes: int = Field(default=16 * MIB, ge=1024)
    #: A chunk with more text than this is set aside with a message.
    max_chunk_bytes: int = Field(default=MIB, ge=1024)
    #: A job pauses at this many dead letters.
    max_dead: int = Field(default=1000, ge=1)
    #: Seconds a request (search, comparison with the store) may take in all, repeats included.
    request_seconds: float = Field(default=120.0, gt=0)
    #: How long a producer waits for Redis or the store to come back before it gives up.
    patience_seconds: float = Field(default=600.0, ge=0)
    #: Largest memory of the private Redis of a local fleet.
    redis_maxmemory: int = Field(default=1024 * MIB, ge=8 * MIB)
    log_level: str = "INFO"

    @property
    def redis_socket(self) -> Path:
        """Unix socket of the private server; moved to a short path where the data directory's is too long."""
        direct = self.data_dir.absolute() / "redis.sock"
        # sockaddr_un holds 108 bytes, the closing NUL included.
        if len(os.fsencode(direct)) < 100:
            return direct
        tag = hashlib.blake2b(os.fsencode(self.data_dir.absolute()), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"v5-{os.getuid()}-{tag}" / "redis.sock"

    @property
    def embedded_redis(self) -> bool:
        """Whether the ledger is the local fleet's private server."""
        return not self.redis_url

    @property
    def ledger_url(self) -> str:
        """URL for redis-py."""
        return self.redis_url or f"unix://{self.redis_socket}"

    @property
    def celery_url(self) -> str:
        """URL for kombu, which spells Unix sockets its own way."""
        url = self.broker_url or self.ledger_url
        if url.startswith("unix://"):
            return "redis+socket://" + url.removeprefix("unix://")
        return url

    @property
    def blob_server_urls(self) -> tuple[str, ...]:
        """URLs of the blob servers."""
        return self.blob_urls or (self.ledger_url,)


def _xdg(variable: str, fallback: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else Path.home() / fallback


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` win over the environment. Raises UsageError naming the wrong one."""
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        said = "; ".join(
            f"V5_{'_'.join(str(p) for p in e['loc'][:1]).upper()}: {e['msg']}" for e in error.errors()
        )
        raise UsageError(f"a setting is wrong: {said}") from None
    except ValueError as error:  # pydantic-settings: a value that is not the JSON it must be
        raise UsageError(f"a setting is wrong: {error}") from None
