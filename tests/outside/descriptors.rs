//! Programs that close all descriptors, as daemons do, and reuse their numbers for files and sockets of their own.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::apart::apart;
use crate::fixture::{PATIENCE, Place, accepted, event, eventually, take};
use crate::process::{forked, give_number};

fn target(number: i32) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default()
}

/// The descriptors of files of the queue.
fn numbers_of_the_queue(place: &Place) -> Vec<i32> {
    let numbers =
        fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|number| target(*number).starts_with(&place.queue)).collect()
}

#[test]
fn sockets_with_numbers_of_queue_files_are_not_touched() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "before");
            eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            let numbers = numbers_of_the_queue(place);
            assert!(numbers.len() >= 3, "{numbers:?}");
            let (socket, mut other_end) = UnixStream::pair().unwrap();
            other_end.set_nonblocking(true).unwrap();
            numbers.iter().for_each(|number| give_number(*number, &socket));
            let theirs = target(numbers[0]);
            assert!(theirs.to_str().unwrap().starts_with("socket:"), "{theirs:?}");
            let all_open = || numbers.iter().all(|number| target(*number) == theirs);
            forked(|| assert!(all_open(), "a fork closes what is not ours in the child")).must_end_well();
            // The lock is taken again, the store is opened again, and arenas are replaced.
            let mut taken = Vec::new();
            eventually("the client accepts and persists events again", || {
                let receipt = client.capture(event("after"));
                taken.extend(receipt.is_accepted().then(|| accepted(&receipt)));
                receipt.persisted().wait(PATIENCE) == Ok(()) && taken.len() >= 100
            });
            eventually("all is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            assert_eq!(client.stats().imbalance(), 0);
            client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
            drop(client);
            assert!(all_open(), "a shutdown closes what is not ours");
            let mut written = Vec::new();
            let _ = other_end.read_to_end(&mut written);
            assert!(written.is_empty(), "{} bytes of the queue went into the program's socket", written.len());
        },
        |fixture| assert!(fixture.names().iter().filter(|name| *name == "after").count() >= 100),
    );
}
