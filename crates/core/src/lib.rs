//! The contract of replikv: positions, batches, write sets, key ranges, and the ReplicaStore trait.
