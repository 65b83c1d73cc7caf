"""Feature rows on disk, keyed by the content of the sample they came from.

A folder for each fingerprint, immutable shards inside, no shared mutable file: see
:mod:`sk_calex.store._shard` for the format and :mod:`sk_calex.store._files` for how a
shard reaches its place whole or not at all.
"""

from __future__ import annotations

from ._folder import StoreWarning
from ._keys import row_keys
from ._section import Section
from ._store import FeatureStore

__all__ = ["FeatureStore", "Section", "StoreWarning", "row_keys"]
