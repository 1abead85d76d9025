//! A log writer that never blocks a task: a bounded queue passes lines to a writer thread.
//!
//! A line is dropped and counted if the queue is full; the count is logged once lines are written again.
//! A failed write also counts as dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// The maximum number of queued lines.
const QUEUE: usize = 8192;
/// How long the exit of the process waits for queued lines.
const FLUSH: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Queues lines for the writing thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogWriter {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    /// Starts the thread that writes to `target`. If no thread can be started, every line counts as dropped.
    pub fn start(target: impl Write + Send + 'static) -> Self {
        Self::with_queue(target, QUEUE)
    }

    fn with_queue(target: impl Write + Send + 'static, size: usize) -> Self {
        let (queue, entries) = sync_channel(size);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let _ = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(target, &entries, &count));
        Self { queue, dropped }
    }

    /// Waits until all lines queued before are written, for half a second at most.
    pub fn flush(&self) {
        let ((done, written), until) = (sync_channel(1), Instant::now() + FLUSH);
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(back)) = self.queue.try_send(entry) {
            if Instant::now() >= until {
                return;
            }
            entry = back;
            thread::sleep(Duration::from_millis(1));
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    /// Returns the number of dropped lines that are not reported yet.
    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Write for LogWriter {
    /// Accepts the whole line. Never blocks, never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_all(mut target: impl Write, entries: &Receiver<Entry>, dropped: &AtomicU64) {
    loop {
        let entry = match entries.recv_timeout(Duration::from_secs(1)) {
            Ok(entry) => entry,
            Err(RecvTimeoutError::Timeout) => {
                report(&mut target, dropped);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match entry {
            Entry::Line(line) => {
                report(&mut target, dropped);
                if target.write_all(&line).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Entry::Flush(done) => {
                report(&mut target, dropped);
                let _ = target.flush();
                let _ = done.send(());
            }
        }
    }
}

/// Reports the number of dropped lines, in a line that is valid JSON and readable as text.
fn report(target: &mut impl Write, dropped: &AtomicU64) {
    let count = dropped.load(Ordering::Relaxed);
    if count == 0 {
        return;
    }
    let line = format!(
        "{{\"level\":\"WARN\",\"message\":\"log lines were dropped: the log could not be written\",\"dropped\":{count}}}\n"
    );
    if target.write_all(line.as_bytes()).is_ok() {
        dropped.fetch_sub(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// A target that blocks until it is released.
    struct Gated {
        begun: std::sync::mpsc::Sender<()>,
        release: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begun.send(());
            let _ = self.release.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_target_blocks_no_writer_and_the_lost_lines_are_counted() {
        let ((begun, has_begun), (open, release)) = (channel(), channel());
        let written = Arc::new(Mutex::new(Vec::new()));
        let target = Gated { begun, release, written: Arc::clone(&written) };
        let mut writer = LogWriter::with_queue(target, 2);
        writer.write_all(b"first\n").unwrap();
        has_begun.recv().unwrap();
        for _ in 0..5 {
            writer.write_all(b"more\n").unwrap();
        }
        assert_eq!(writer.dropped(), 3, "two lines fit into the queue");
        drop(open);
        // Independent of how long the thread takes on a loaded machine.
        while writer.dropped() > 0
            || written.lock().unwrap().iter().filter(|b| **b == b'\n').count() < 4
        {
            writer.flush();
        }
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("more").count(), 2);
        assert!(text.contains("\"dropped\":3"), "{text}");
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn a_failing_target_causes_no_panic() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut writer = LogWriter::start(Full);
        writer.write_all(b"line\n").unwrap();
        while writer.dropped() == 0 {
            writer.flush();
        }
        assert_eq!(writer.dropped(), 1);
    }
}
