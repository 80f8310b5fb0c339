"""A stand-in for a Qdrant server, for tests where none can be had.

The engine is real: every collection is a shard of Qdrant Edge, the engine of the server. The protocol is
real: gRPC messages and REST bodies over sockets, read by the schemas of Qdrant's own client. What a server
adds around them (status codes, words, limits, access, what each version knows) is reproduced from its
documentation and source, and is only as true as that reading: where a real server can be had,
V5_TEST_QDRANT_URL names it, and that is the test.

It has one node, one shard and no replicas, builds no indexes or quantised vectors (it only says that it does,
where a server would), and knows only the calls that tests need; any other is refused as not implemented.
"""

from tests.qdrant_standin.gate import Request
from tests.qdrant_standin.standin import Standin

__all__ = ["Request", "Standin"]
