//! Turns the numbers of all rounds into a table with targets, and into JSON lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::cases::Case;
use crate::role::{Numbers, Side};

/// The target for one of Countersign's numbers.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// At least this share of the bare loop's number.
    ShareOver(f64),
    /// At most this multiple of the bare loop's number.
    TimesUnder(f64),
    /// At most this number, whatever the bare loop's is.
    Under(f64),
    /// At least this number, whatever the bare loop's is.
    Over(f64),
    None,
}

/// One row of the table.
struct Row {
    case: Case,
    number: &'static str,
    says: &'static str,
    target: Target,
}

const fn row(case: Case, number: &'static str, says: &'static str, target: Target) -> Row {
    Row { case, number, says, target }
}

const ROWS: &[Row] = &[
    row(Case::Drain, "rate", "drain: tasks/s", Target::ShareOver(0.9)),
    row(Case::Drain, "cpu_s_per_1000", "drain: CPU s per 1,000", Target::TimesUnder(1.4)),
    row(Case::Drain, "peak_mib", "drain: peak MiB", Target::Under(30.0)),
    row(Case::Sleep, "rate", "10 ms sleep, 500 at once: tasks/s", Target::ShareOver(0.9)),
    row(Case::Sleep, "cpu_s_per_1000", "10 ms sleep: CPU s per 1,000", Target::None),
    row(Case::Enqueue, "one_by_one_rate", "enqueue, one by one: tasks/s", Target::ShareOver(0.9)),
    row(Case::Enqueue, "window_rate", "enqueue, 64 in flight: tasks/s", Target::ShareOver(0.9)),
    row(Case::Roundtrip, "one_p50_ms", "round trip: p50 ms", Target::TimesUnder(1.25)),
    row(Case::Roundtrip, "one_p99_ms", "round trip: p99 ms", Target::TimesUnder(1.6)),
    row(Case::Roundtrip, "many_rate", "200 callers: calls/s", Target::ShareOver(0.75)),
    row(Case::Roundtrip, "many_p99_ms", "200 callers: p99 ms", Target::None),
    row(Case::Idle, "rss_mib", "idle: MiB", Target::Under(15.0)),
    row(Case::Idle, "core_percent", "idle: % of a core", Target::Under(0.15)),
    row(Case::Idle, "first_task_s", "start to first task done: s", Target::Under(0.1)),
    row(Case::Waiters, "rss_mib", "100,000 waiting results: MiB", Target::Under(60.0)),
    row(Case::Stream, "rate", "64 streams: entries/s", Target::Over(20_000.0)),
    row(Case::Stream, "followed_p50_ms", "64 streams, one followed: p50 ms", Target::Under(20.0)),
    row(Case::Suspend, "cycles", "10,000 suspended and resumed: cycles/s", Target::Over(3_000.0)),
    row(Case::Suspend, "resume_p50_ms", "decision to handler: p50 ms", Target::Under(5.0)),
    row(Case::Suspend, "resume_p99_ms", "decision to handler: p99 ms", Target::Under(50.0)),
    row(
        Case::Suspend,
        "suspended_mib",
        "10,000 suspended: MiB more in the worker",
        Target::Under(1.0),
    ),
    row(Case::Suspend, "resume_s", "10,000 decided after a restart: s", Target::Under(60.0)),
    row(Case::Suspend, "race_rate", "50 deciders on each of 2,000: decisions/s", Target::None),
    row(Case::Limited, "behind_s", "500 tasks behind 5,000 at 200/s: s", Target::Under(10.0)),
    row(Case::Limited, "rate", "those 5,000: tasks/s of 200", Target::Over(150.0)),
    row(Case::Limited, "held_back", "times that each was held back", Target::Under(2.0)),
    row(Case::Limited, "cpu_s", "worker CPU of it: s", Target::None),
    row(Case::Pools, "shared_p50_ms", "lease renewal, no pool: p50 ms", Target::None),
    row(Case::Pools, "shared_p99_ms", "lease renewal, no pool: p99 ms", Target::None),
    row(Case::Pools, "shared_reads", "results of 1 MiB read per s, no pool", Target::None),
    row(Case::Pools, "pooled_p50_ms", "lease renewal, pool of 4: p50 ms", Target::None),
    row(Case::Pools, "pooled_p99_ms", "lease renewal, pool of 4: p99 ms", Target::None),
    row(Case::Pools, "pooled_reads", "results of 1 MiB read per s, pool of 4", Target::None),
    row(Case::Pools, "share", "p99 with the pool / without", Target::Under(0.1)),
    row(
        Case::Embedded,
        "disk_enqueue",
        "database on disk, enqueue: tasks/s",
        Target::Over(60_000.0),
    ),
    row(Case::Embedded, "disk_drain", "database on disk, drain: tasks/s", Target::Over(25_000.0)),
    row(Case::Embedded, "memory_enqueue", "in memory, enqueue: tasks/s", Target::Over(100_000.0)),
    row(Case::Embedded, "memory_drain", "in memory, drain: tasks/s", Target::Over(40_000.0)),
    row(
        Case::Database,
        "task_p50_ms",
        "a task seen by another process: p50 ms",
        Target::Under(50.0),
    ),
    row(Case::Database, "result_p50_ms", "its result likewise: p50 ms", Target::Under(50.0)),
    row(Case::Database, "held_file_mib", "100,000 suspended: MiB of file", Target::Under(100.0)),
    row(
        Case::Database,
        "held_mib",
        "100,000 suspended: MiB more in the worker",
        Target::Under(5.0),
    ),
    row(Case::Database, "open_s", "a million results: s to open", Target::Under(1.0)),
    row(Case::Database, "stall_ms", "and to forget: longest write, ms", Target::Under(50.0)),
];

/// Every number of every round.
#[derive(Default)]
pub(crate) struct Report {
    measured: BTreeMap<(Case, Side), Vec<Numbers>>,
}

impl Report {
    pub(crate) fn add(&mut self, case: Case, side: Side, numbers: Numbers) {
        self.measured.entry((case, side)).or_default().push(numbers);
    }

    fn median(&self, row: &Row, side: Side) -> Option<f64> {
        let rounds = self.measured.get(&(row.case, side))?;
        let mut numbers: Vec<f64> =
            rounds.iter().filter_map(|numbers| numbers.get(row.number).copied()).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied()
    }

    /// Whether the target of this row was met. `None` if it has no target or was not measured.
    fn is_met(&self, row: &Row) -> Option<bool> {
        let ours = self.median(row, Side::Ours)?;
        let bare = self.median(row, Side::Bare);
        match row.target {
            Target::ShareOver(share) => Some(ours >= bare? * share),
            Target::TimesUnder(times) => Some(ours <= bare? * times),
            Target::Under(most) => Some(ours <= most),
            Target::Over(least) => Some(ours >= least),
            Target::None => None,
        }
    }

    /// Counts the rows whose target was missed.
    pub(crate) fn missed(&self) -> usize {
        ROWS.iter().filter(|row| self.is_met(row) == Some(false)).count()
    }

    /// Formats the table in Markdown.
    pub(crate) fn table(&self, sides: &[Side]) -> String {
        let peers: Vec<Side> =
            sides.iter().copied().filter(|side| !matches!(side, Side::Bare | Side::Ours)).collect();
        let mut table = String::from("| | Countersign | bare loop | ratio | target | |");
        for peer in &peers {
            let _ = write!(table, " {peer:?} |");
        }
        table.push_str("\n|---|---|---|---|---|---|");
        table.push_str(&"---|".repeat(peers.len()));
        table.push('\n');
        for row in ROWS {
            let Some(ours) = self.median(row, Side::Ours) else {
                continue;
            };
            let bare = self.median(row, Side::Bare);
            let verdict = match self.is_met(row) {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            let _ = write!(
                table,
                "| {} | {} | {} | {} | {} | {verdict} |",
                row.says,
                short(ours),
                bare.map_or_else(String::new, short),
                bare.map_or_else(String::new, |bare| format!("{:.2}", ours / bare)),
                row.target,
            );
            for peer in &peers {
                let number = self.median(row, *peer).map_or_else(String::new, short);
                let _ = write!(table, " {number} |");
            }
            table.push('\n');
        }
        table
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ShareOver(share) => write!(f, "≥ {share:.2} of bare"),
            Self::TimesUnder(times) => write!(f, "≤ {times:.2} of bare"),
            Self::Under(most) => write!(f, "≤ {most}"),
            Self::Over(least) => write!(f, "≥ {least}"),
            Self::None => Ok(()),
        }
    }
}

/// Formats a number with about three significant digits.
fn short(number: f64) -> String {
    match number {
        n if n >= 1000.0 => {
            let n = n.round() as u64;
            format!("{},{:03}", n / 1000, n % 1000)
        }
        n if n >= 10.0 => format!("{n:.1}"),
        n if n >= 1.0 => format!("{n:.2}"),
        n => format!("{n:.3}"),
    }
}
