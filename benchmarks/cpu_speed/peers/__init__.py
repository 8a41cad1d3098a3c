"""The peers: every library and setting that is timed, and what each starts from.

A new one is an entry of `PEERS` and a function that builds it.
"""

from __future__ import annotations

from benchmarks.cpu_speed.peers.registry import Peer, peer_named, peers_of, stages_of

__all__ = ["Peer", "peer_named", "peers_of", "stages_of"]
