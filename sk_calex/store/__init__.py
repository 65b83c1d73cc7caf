"""Feature rows on disk, keyed by the content of the sample they came from.

Each fingerprint has a folder of immutable shards; there is no shared mutable file. The
format is in :mod:`sk_calex.store._shard_file`, atomic writes and locks in
:mod:`sk_calex.store._files`, and the size cap in :mod:`sk_calex.store._eviction`.
"""

from __future__ import annotations

from ._keys import row_keys
from ._repair import StoreReport
from ._section import Section
from ._store import FeatureStore
from ._stored_rows import StoredRows
from ._warnings import StoreWarning

__all__ = [
    "FeatureStore",
    "Section",
    "StoreReport",
    "StoreWarning",
    "StoredRows",
    "row_keys",
]
