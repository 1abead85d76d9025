//! The bare loop as a child process with the allocator of the platform.

mod bare;
mod batches;
mod load;
mod role;
mod work;

use std::env;
use std::process::ExitCode;

use role::{Result, Role, payload};

fn main() -> ExitCode {
    let played = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(async { tokio::spawn(play()).await? }));
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-bare: {error}");
            ExitCode::from(70)
        }
    }
}

/// Runs the role of the last argument on a thread of the runtime.
async fn play() -> Result<()> {
    let role = env::args().next_back().ok_or("no role")?;
    let role: Role = serde_json::from_str(&role)?;
    bare::play(role, payload(), false).await
}
