//! What time it is for this process. Deadlines of approvals are by the store's clock, never by this
//! one.

use jiff::Timestamp;

use crate::faults;

/// Now, by the clock of this machine.
pub(crate) fn now() -> Timestamp {
    faults::shifted(Timestamp::now())
}
