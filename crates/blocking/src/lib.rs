//! A synchronous store becomes a ReplicaStore: one writer thread, readers, a bounded queue, panics caught.
