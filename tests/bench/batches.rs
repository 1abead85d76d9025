//! What a good engineer would add to the bare loop's worker in fifty lines: results are written in one
//! pipeline for many tasks, and one ack settles many deliveries.

use std::collections::BTreeSet;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;

use crate::bare::{RESULT_SECONDS, Ran};
use crate::role::Result;

const BATCH: usize = 128;

/// Stores results and acks their deliveries until all senders are gone.
pub(crate) async fn settle(
    mut ran: mpsc::UnboundedReceiver<Ran>,
    channel: Channel,
    mut store: MultiplexedConnection,
) -> Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let (mut settled, mut acked) = (BTreeSet::new(), 0);
    while ran.recv_many(&mut batch, BATCH).await > 0 {
        let mut write = redis::Pipeline::with_capacity(batch.len() * 2);
        for Ran { key, document, reply, .. } in &batch {
            write.cmd("SET").arg(key).arg(document).arg("EX").arg(RESULT_SECONDS).ignore();
            write.cmd("PUBLISH").arg(reply.as_ref().unwrap_or(key)).arg(document).ignore();
        }
        write.query_async::<()>(&mut store).await?;
        settled.extend(batch.drain(..).map(|ran| ran.tag));
        let before = acked;
        while settled.remove(&(acked + 1)) {
            acked += 1;
        }
        if acked > before {
            channel.basic_ack(acked, BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(())
}
