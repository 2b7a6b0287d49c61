//! What a client remembers of flags.

use crate::client::Client;

/// How many reads of flags the client remembers as told with `$feature_flag_called`: combinations of person, groups and flag. None once
/// it is closed.
pub fn told_flag_reads(client: &Client) -> usize {
    client.told_flag_reads()
}
