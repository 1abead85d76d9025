//! Where handlers panic, for the tracebacks of their tasks.

use std::any::Any;
use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use tracing::error;

use crate::error::Failure;

thread_local! {
    /// The last panic of this thread: its message and its location.
    static LAST: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

const NO_MESSAGE: &str = "no message";

/// A panic that is carried to another thread, because its location is known only where it happened.
struct Carried {
    message: String,
    location: Option<String>,
}

/// Records the location of every panic from now on, and then calls the panic hook that was set before. A hook
/// that the program sets later replaces this; the tracebacks then have no location.
pub(super) fn record_locations() {
    static RECORD: Once = Once::new();
    RECORD.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if let Some(location) = panic.location() {
                let message = panic.payload_as_str().unwrap_or(NO_MESSAGE).to_owned();
                LAST.set(Some((message, location.to_string())));
            }
            previous(panic);
        }));
    });
}

/// Wraps a panic of this thread for another one.
pub(super) fn carry(payload: &(dyn Any + Send)) -> Box<dyn Any + Send> {
    let (message, location) = describe(payload);
    Box::new(Carried { message, location })
}

/// Logs a panic of this thread, and returns it as the failure of its task.
pub(super) fn failure(payload: &(dyn Any + Send)) -> Failure {
    let (message, location) = match payload.downcast_ref::<Carried>() {
        Some(Carried { message, location }) => (message.clone(), location.clone()),
        None => describe(payload),
    };
    error!(location, "the handler panicked: {message}");
    let failure = Failure::new("countersign.errors", "HandlerPanicked", message);
    let at = location.map(|location| format!("\n  at {location}")).unwrap_or_default();
    Failure { traceback: Some(format!("{failure}{at}")), ..failure }
}

/// Returns the message of a panic, and its location if the last panic of this thread had this message:
/// otherwise it is the panic of another thread, which was resumed here.
fn describe(payload: &(dyn Any + Send)) -> (String, Option<String>) {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or(NO_MESSAGE);
    let last = LAST.take().filter(|(message, _)| message == text);
    (text.to_owned(), last.map(|(_, location)| location))
}
