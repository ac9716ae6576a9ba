//! The beginning of a master's store, as `replikv-node` writes it.

use bytes::BytesMut;
use replikv_core::{EncodedOps, Epoch, Keyspace, Seq, SourceId, WriteSet};
use replikv_proto::layout::{Epochs, Floor, Head, Identity, Role, Stored};
use replikv_proto::{EpochStart, PreparedRecord, RecordDraft, RecordKind, origin};

use super::context::Context;
use super::{DriverBug, Scene};

/// The beginning of a history, in one synced write set: as `replikv-node` writes it.
pub(super) fn begin(ctx: &mut Context, store: usize, wall_offset_ms: i64) {
    let source = SourceId::from_bytes(ctx.store_rng.u128(..).to_le_bytes());
    let epoch = Epoch { number: 1, nonce: ctx.store_rng.u64(..) };
    let time = ctx.clock(wall_offset_ms).unix_ms;
    let holds_data = !ctx.stores[store].visible.of(Keyspace::Data).is_empty() && !ctx.planted(DriverBug::BaseLeftOut);
    let mut at = origin(source, epoch);
    let mut floor = Floor { position: at, log_bytes: 0 };
    let mut log_bytes = 0;
    let mut writes = WriteSet::builder();
    let kinds: &[RecordKind] = if holds_data { &[RecordKind::Epoch, RecordKind::Base] } else { &[RecordKind::Epoch] };
    for kind in kinds {
        let body = EncodedOps::default();
        let draft = RecordDraft { epoch, kind: *kind, time, note: b"", body: body.as_bytes() };
        let Ok(record) = PreparedRecord::after(&at, &draft) else { return };
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        at = record.position();
        log_bytes += bytes.len() as u64;
        drop(writes.put(Keyspace::Log, at.seq.to_key(), &bytes));
    }
    if holds_data {
        ctx.coverage.met(Scene::BaseRecord);
        floor = Floor { position: at, log_bytes };
    }
    let head = Head { position: at, log_bytes, uptime_ms: 0 };
    let epochs = Epochs(vec![EpochStart { epoch, first: Seq::new(1) }]);
    let identity = Identity { role: Role::Master, source: Some(source) };
    for (key, value) in [
        (Identity::KEY, identity.to_bytes()),
        (Head::KEY, head.to_bytes()),
        (Floor::KEY, floor.to_bytes()),
        (Epochs::KEY, epochs.to_bytes()),
    ] {
        drop(writes.put(Keyspace::Meta, key, value));
    }
    let model = &mut ctx.stores[store];
    let writes = writes.build();
    model.visible.apply(&writes);
    model.durable.apply(&writes);
    ctx.oracle.began(&ctx.stores[store], &at);
}
