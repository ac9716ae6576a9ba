//! What decides in replikv: frames, records, sessions, committer, applier and retention, without I/O, clock or runtime.
