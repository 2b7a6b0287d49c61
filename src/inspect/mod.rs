//! Queues from outside: finds them, reads them without changing them, checks, repairs and moves them. The command
//! `posthog-queue` (feature `cli`) stands on this module; `docs/operations.md` is its manual.
//!
//! A *queue* here is one shard: a directory `<queue_dir>/<project>/shard-<n>` with a journal and a store, that one
//! process at a time owns ([`QueueDir`]). Functions that read change nothing, and work beside a living owner. Functions
//! that write open the queue as its owner, and fail with [`InspectError::Owned`] while another process has it.
//!
//! [`import`] fills a new queue of a project from a file, [`move_to`] moves the events of a queue to another project, and
//! [`Drain`] delivers the queues of a project in place of its program.
//!
//! ```no_run
//! for queue in posthog::inspect::queues(&posthog::inspect::default_queue_dir()?)? {
//!     println!("{} is owned by {:?}", queue.path().display(), queue.owner()?);
//! }
//! # Ok::<(), posthog::inspect::InspectError>(())
//! ```

mod crashes;
mod dead;
mod drain;
mod error;
mod filter;
mod forget;
mod import;
mod incoming;
mod moving;
mod owned;
mod places;
mod power_cut;
mod prometheus;
mod prove;
mod reader;
mod repair;
mod staging;
mod status;
mod verdict;
mod verify;

pub use crashes::{Crash, CrashReport, CrashReportState};
pub use dead::{DeadChange, DeadFilter, DeadGroup, DeadLetters};
pub use drain::{Drain, DrainProgress, Holding};
pub use error::InspectError;
pub use filter::{EventFilter, EventState};
pub use forget::{NotReached, Person, PersonFound};
#[cfg(any(fuzzing, test))]
pub(crate) use import::records_of_any;
pub use import::{BadLine, ImportOptions, Imported, import};
pub use moving::{Moved, move_to, project_name};
pub use places::{Owner, QueueDir, default_queue_dir, queues, queues_and_imports};
pub use power_cut::{PowerCuts, power_cuts};
pub use prometheus::to_prometheus;
pub use prove::{DiskReport, Latencies, LatencyRange, ProofDir, disk, proof_client, stored_uuids};
pub use reader::{Content, Damage, EventPlace, EventSummary, QueueReader, StoredEvent};
pub use repair::Repair;
pub use status::{DamagedFile, DeliveryStatus, LastRun, QueueOwner, QueueStatus};
pub use verdict::{QueueFinding, QueueState, QueueVerdict};
pub use verify::{Problem, ProblemKind, Verification};
