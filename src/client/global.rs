//! The process-wide client.

use std::sync::OnceLock;

use super::Client;
use super::receipt::Receipt;
use crate::config::Config;
use crate::error::Error;
use crate::event::Event;
use crate::worker::DropReason;

static CLIENT: OnceLock<Client> = OnceLock::new();

/// Makes the process-wide client, which [`capture`] and [`client`] use. It lives as long as the process; call
/// [`Client::close`] on it before the process ends to send what can be sent, or let the next start send it.
///
/// A daemon calls this after it has dropped its privileges and before it starts threads that capture.
///
/// # Errors
///
/// As [`Client::new`]; [`Error::AlreadyInitialised`] if it was called before.
pub fn init(config: Config) -> Result<Client, Error> {
    if CLIENT.get().is_some() {
        return Err(Error::AlreadyInitialised);
    }
    let client = Client::new(config)?;
    match CLIENT.set(client.clone()) {
        Ok(()) => Ok(client),
        // Somebody was faster; ours is closed by being dropped.
        Err(_) => Err(Error::AlreadyInitialised),
    }
}

/// The process-wide client, if [`init`] has made one.
pub fn client() -> Option<Client> {
    CLIENT.get().cloned()
}

/// Captures with the process-wide client. Without one the event is `Dropped(Disabled)`.
pub fn capture(event: Event) -> Receipt {
    match CLIENT.get() {
        Some(client) => client.capture(event),
        None => Receipt::dropped(DropReason::Disabled),
    }
}
