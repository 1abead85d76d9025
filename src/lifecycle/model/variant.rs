//! Protocols that are simpler than ours, and wrong. Each differs from it in one place.

/// What is done in place of what is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Variant {
    /// What is shipped.
    Ours,
    /// A run acks its message before it parks.
    AckBeforePark,
    /// The wake message of a first park is sent before the store knows of the task.
    WakeBeforeClaim,
    /// The wake message is sent after the park is stored.
    WakeAfterPark,
    /// No wake message is sent.
    NoWake,
    /// A decision is read in one step and written in another.
    GetThenSet,
    /// A decision leaves nothing in the outbox.
    NoOutbox,
    /// The outbox is cleared before the resume message is sent.
    ClearBeforeSend,
    /// A run that is told a decision when it would park leaves nothing in the outbox: it may die.
    ReadyUnnoted,
    /// A park that nobody has decided is forgotten at its deadline.
    TtlOnPending,
    /// Whoever has a message of the newest park runs the task.
    NoClaim,
    /// A claim keeps off only messages of the same decision.
    ClaimPerApproval,
    /// A claim ends only with its run.
    ClaimForEver,
    /// A message of a park that somebody runs is acked.
    LeasedAcked,
    /// Whoever has the claim runs the task without looking for its result.
    ClaimWithoutRead,
    /// The same, of a run that claims its park back in its hold.
    HoldWithoutRead,
    /// A message belongs to the record of its id, whatever its task.
    NoDigest,
    /// A record that has ended keeps every later task with its id from being suspended.
    OneLife,
}
