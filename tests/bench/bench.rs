//! Measures Countersign and a bare loop on lapin and redis, on the same servers and in turns.
//! `ops/bench` builds it and starts the servers.

mod approve;
mod backlog;
mod bare;
mod cases;
mod database;
mod decide;
mod embedded;
mod limited;
mod load;
mod ours;
mod pools;
mod process;
mod report;
mod role;
mod servers;
mod speak;
mod work;

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use cases::{Bench, Case, Sizes};
use clap::{Parser, ValueEnum};
use report::Report;
use role::{Result, Role, Side};
use serde_json::json;
use servers::Servers;

/// Measures Countersign and a bare loop on lapin and redis, on the same servers and in turns.
#[derive(Debug, Parser)]
#[command(name = "ops/bench", after_help = EXAMPLES)]
struct Options {
    /// The cases to measure [default: all]
    #[arg(value_enum)]
    cases: Vec<Case>,
    /// Use small sizes, for a quick look; the numbers are no measurement
    #[arg(long)]
    quick: bool,
    /// The number of times that each case is measured; the table shows the median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure Celery and Dramatiq too (drain, enqueue, roundtrip)
    #[arg(long)]
    peers: bool,
    /// Write every number of every round to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with code 1 if a target was missed
    #[arg(long)]
    check: bool,
}

const EXAMPLES: &str = "Examples:
  ops/bench                          everything, about six minutes
  ops/bench drain enqueue --quick    two cases, small
  ops/bench --peers --json all.json  Celery and Dramatiq too, every number kept
  ops/bench build [dev|user]         cold builds: `countersign dev` of a new clone, a user's crate

The table is on standard output, what runs on standard error. Run nothing else on the machine.";

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let arguments: Vec<String> = env::args().collect();
    let ended = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "child", side, role] => runtime.block_on(play(side, role)).map(|()| ExitCode::SUCCESS),
        _ => runtime.block_on(measure(Options::parse())),
    };
    ended.unwrap_or_else(|error| fail(&*error))
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("bench: {error}");
    ExitCode::from(70)
}

/// Runs a role on a thread of the runtime, as a service's requests and a worker's tasks run.
async fn play(side: &str, role: &str) -> Result<()> {
    let role: Role = serde_json::from_str(role)?;
    match Side::from_str(side, false)? {
        Side::Bare => tokio::spawn(bare::play(role, payload())).await?,
        Side::Ours => tokio::spawn(ours::play(role, payload())).await?,
        Side::Celery | Side::Dramatiq => Err("these are played by peers.py".into()),
    }
}

/// Makes about 256 bytes of arguments, JSON syntax included.
fn payload() -> String {
    "x".repeat(220)
}

async fn measure(options: Options) -> Result<ExitCode> {
    let sizes = if options.quick { Sizes::QUICK } else { Sizes::FULL };
    let bench = Bench { servers: Servers::connect().await?, sizes, payload: payload() };
    let mut sides = vec![Side::Bare, Side::Ours];
    if options.peers {
        sides.extend([Side::Celery, Side::Dramatiq]);
    }
    let cases = match &options.cases[..] {
        [] => Case::value_variants(),
        chosen => chosen,
    };
    let mut json = options.json.as_ref().map(File::create).transpose()?;
    let set_up = set_up(&bench).await?;
    keep(&mut json, &set_up)?;
    let mut report = Report::default();
    for round in 1..=options.rounds {
        for case in cases {
            for side in sides.iter().filter(|side| case.has(**side)) {
                eprintln!("bench: round {round} of {}: {case:?}, {side:?}", options.rounds);
                let numbers = case.measure(&bench, *side).await?;
                eprintln!("bench:   {}", json!(numbers));
                let line = json!({"round": round, "case": case, "side": side, "numbers": numbers});
                keep(&mut json, &line)?;
                report.add(*case, *side, numbers);
            }
        }
        sides.rotate_left(1);
    }
    sides.sort();
    println!("{}\n{set_up}", report.table(&sides));
    let missed = options.check && report.missed() > 0;
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Returns the setup that the numbers depend on.
async fn set_up(bench: &Bench) -> Result<serde_json::Value> {
    let (rabbitmq, redis) = bench.servers.versions().await?;
    let variable = |name| env::var(name).unwrap_or_else(|_| "unknown".to_owned());
    Ok(json!({
        "command": env::args().skip(1).fold("ops/bench".to_owned(), |all, one| all + " " + &one),
        "commit": variable("BENCH_COMMIT"),
        "cores": std::thread::available_parallelism()?.get(),
        "rustc": variable("BENCH_RUSTC"),
        "rabbitmq": rabbitmq,
        "redis": redis,
        "lapin crate": locked("lapin"),
        "redis crate": locked("redis"),
        "sizes": bench.sizes,
    }))
}

/// Returns the version of a crate that this program was built with.
fn locked(name: &str) -> &'static str {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let lock = include_str!("../../Cargo.lock");
    let rest = lock.split_once(&entry).and_then(|(_, rest)| rest.split('"').next());
    rest.unwrap_or("unknown")
}

fn keep(json: &mut Option<File>, line: &serde_json::Value) -> Result<()> {
    if let Some(file) = json {
        writeln!(file, "{line}")?;
    }
    Ok(())
}
