//! Simpler, incorrect protocols. Each differs from the real one in one place.

/// The protocol that the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mutant {
    /// The real protocol.
    Correct,
    /// A run acks its message before it suspends.
    AckBeforeSuspend,
    /// The wake message of a first suspension is sent before the store has a record of the task.
    WakeBeforeClaim,
    /// The wake message is sent after the suspension is stored.
    WakeAfterSuspend,
    /// No wake message is sent.
    NoWake,
    /// No wake message is sent, and no sweep looks for expired requests.
    NeitherWakeNorSweep,
    /// A decision is read in one step and written in another.
    GetThenSet,
    /// A decision writes no outbox entry.
    NoOutbox,
    /// The outbox is cleared before the resume message is sent.
    ClearBeforeSend,
    /// A run that finds a decision while it suspends writes no outbox entry: the run may die.
    ReadyWithoutOutbox,
    /// The record of an undecided suspension is deleted at its deadline.
    TtlOnPending,
    /// A sweep removes an expired request from the index without an outbox entry.
    ExpireWithoutOutbox,
    /// A backstop that arrives while its task is suspended is acked, and not sent again.
    BackstopNotRenewed,
    /// Every message of the newest suspension runs the task.
    NoClaim,
    /// A claim excludes only messages of the same decision.
    ClaimPerApproval,
    /// A claim ends only with its run.
    ClaimNeverExpires,
    /// A message of a suspension that another run has claimed is acked.
    LeasedAcked,
    /// A claim's holder runs the task without reading its result first.
    ClaimWithoutRead,
    /// The same, for a run that reacquires its claim during its inline wait.
    HoldWithoutRead,
    /// A message belongs to the record with its id, whatever its task.
    NoDigest,
    /// After a record has ended, no later task with its id can be suspended.
    OneGeneration,
}
