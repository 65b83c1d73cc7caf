"""Feature rows on disk, keyed by the content of the sample they came from.

A folder for each fingerprint, immutable shards inside, no shared mutable file: see
:mod:`sk_calex.store._shard_file` for the format, :mod:`sk_calex.store._files` for how a
shard reaches its place whole or not at all, and :mod:`sk_calex.store._eviction` for
what goes when there is no more room.
"""

from __future__ import annotations

from ._keys import row_keys
from ._repair import StoreReport
from ._section import Section
from ._store import FeatureStore
from ._warnings import StoreWarning

__all__ = ["FeatureStore", "Section", "StoreReport", "StoreWarning", "row_keys"]
