//! The Lua scripts. Every connection loads them once, and a call names one by its SHA-1: hashing a
//! script that is sent whole was a sixth of Redis's CPU time while tasks were suspended.

use std::sync::LazyLock;

use redis::Pipeline;

/// The header that lets Redis 7 and later refuse keys that a script did not name. Earlier versions
/// know no headers.
const HEADER: &str = "#!lua\n";

/// A script that only one function calls, or a file of this folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Script {
    AppendEntry,
    ClaimKey,
    ClaimTask,
    Decide,
    DeleteEnded,
    DeleteResult,
    EndSuspended,
    ExtendApproval,
    ForgetRun,
    ForgetSuspended,
    ExpireHistory,
    Lease,
    MarkSent,
    ReadHistory,
    ReadRequests,
    RecordStep,
    Reopen,
    RequestApproval,
    Revoke,
    Seal,
    StoreResults,
    Suspend,
    Sweep,
    ClaimAttempt,
    Warn,
}

impl Script {
    const ALL: [Self; 25] = [
        Self::AppendEntry,
        Self::ClaimKey,
        Self::ClaimTask,
        Self::Decide,
        Self::DeleteEnded,
        Self::DeleteResult,
        Self::EndSuspended,
        Self::ExtendApproval,
        Self::ForgetRun,
        Self::ForgetSuspended,
        Self::ExpireHistory,
        Self::Lease,
        Self::MarkSent,
        Self::ReadHistory,
        Self::ReadRequests,
        Self::RecordStep,
        Self::Reopen,
        Self::RequestApproval,
        Self::Revoke,
        Self::Seal,
        Self::StoreResults,
        Self::Suspend,
        Self::Sweep,
        Self::ClaimAttempt,
        Self::Warn,
    ];

    /// The texts that make up the script, without the header.
    fn parts(self) -> &'static [&'static str] {
        const STATUS: &str = include_str!("status.lua");
        const REFUSE: &str = include_str!("refuse.lua");
        const TIDY: &str = include_str!("tidy.lua");
        const END_SUSPENDED: &str = include_str!("end.lua");
        match self {
            Self::AppendEntry => &[include_str!("stream.lua")],
            Self::ClaimKey => &[include_str!("claim.lua")],
            Self::ClaimTask => &[STATUS, include_str!("claim_task.lua")],
            Self::Decide => &[STATUS, REFUSE, include_str!("decide.lua")],
            Self::DeleteEnded => &[include_str!("delete_ended.lua")],
            Self::DeleteResult => &[include_str!("delete_result.lua")],
            Self::EndSuspended => &[STATUS, END_SUSPENDED],
            Self::ExtendApproval => &[STATUS, REFUSE, include_str!("extend.lua")],
            Self::ForgetRun => &[include_str!("forget_run.lua")],
            Self::ForgetSuspended => &[include_str!("forget.lua")],
            Self::ExpireHistory => &[include_str!("expire.lua")],
            Self::Lease => &[include_str!("lease.lua")],
            Self::MarkSent => &[include_str!("mark.lua")],
            Self::ReadHistory => &[include_str!("read_history.lua")],
            Self::ReadRequests => &[STATUS, include_str!("read.lua")],
            Self::RecordStep => &[include_str!("journal.lua")],
            Self::Reopen => &[include_str!("reopen.lua")],
            Self::RequestApproval => &[STATUS, TIDY, include_str!("request.lua")],
            Self::Revoke => &[include_str!("revoke.lua")],
            Self::Seal => &[include_str!("seal.lua")],
            Self::StoreResults => &[
                STATUS,
                "local function end_task(KEYS, ARGV)\n",
                END_SUSPENDED,
                "end\n",
                include_str!("store_results.lua"),
            ],
            Self::Suspend => &[STATUS, include_str!("suspend.lua")],
            Self::Sweep => &[STATUS, TIDY, include_str!("sweep.lua")],
            Self::ClaimAttempt => &[include_str!("claim_attempt.lua")],
            Self::Warn => &[STATUS, include_str!("warn.lua")],
        }
    }
}

/// All scripts in the form that a server accepts.
#[derive(Debug)]
pub(super) struct Scripts {
    /// Text and SHA-1, by the number of the script.
    scripts: Vec<(String, String)>,
}

impl Scripts {
    /// Returns the scripts for this major version of Redis.
    pub(super) fn of_version(major: Option<u32>) -> &'static Self {
        static WITH_HEADER: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(HEADER));
        static WITHOUT: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(""));
        if major.is_some_and(|major| major < 7) { &WITHOUT } else { &WITH_HEADER }
    }

    fn new(header: &str) -> Self {
        let whole = |script: Script| {
            let text = format!("{header}{}", script.parts().concat());
            let hash = redis::Script::new(&text).get_hash().to_owned();
            (text, hash)
        };
        Self { scripts: Script::ALL.map(whole).into() }
    }

    /// The SHA-1 by which the server knows a loaded script.
    pub(super) fn hash(&self, script: Script) -> &str {
        self.scripts.get(script as usize).map_or("", |(_, hash)| hash)
    }

    /// The commands that load every script.
    pub(super) fn load(&self) -> Pipeline {
        let mut load = Pipeline::with_capacity(self.scripts.len());
        for (text, _) in &self.scripts {
            load.cmd("SCRIPT").arg("LOAD").arg(text);
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_listed_by_their_numbers() {
        for (number, script) in Script::ALL.into_iter().enumerate() {
            assert_eq!(script as usize, number, "{script:?}");
        }
    }
}
