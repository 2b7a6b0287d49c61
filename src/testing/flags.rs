//! The state of a client's feature flags, for tests.

use crate::client::Client;

/// The number of flag reads that the client remembers as captured with `$feature_flag_called`: combinations of person,
/// groups and flag. Zero after the client is closed.
pub fn captured_flag_reads(client: &Client) -> usize {
    client.captured_flag_reads()
}
