//! An HTTP server that wraps the library, for PostHog's SDK compliance harness and for this repository's tests of the
//! same rules.
//!
//! The harness starts it, tells it what to capture, and checks the requests that arrive at a mock server. No request of
//! the harness names a protocol or a codec, so both are fixed for the process, and `GET /health` reports exactly what
//! they support.
//!
//! * `contract.rs`: the requests and responses of the contract.
//! * `instance.rs`: one client with a queue of its own for each `test_id`; a reset discards its events.

mod contract;
mod instance;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, ValueEnum};

use instance::{Instances, Terms};

/// The protocol of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaptureProtocol {
    /// `POST /batch/`
    V0,
    /// `POST /i/v1/analytics/events`
    V1,
}

/// The codec of request bodies in tests that ask for compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Encoding {
    Gzip,
    Deflate,
    Br,
    Zstd,
}

#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The port on 127.0.0.1; 0 takes a free port, which is printed to standard error.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The protocol of the capture endpoint.
    #[arg(long, value_enum, default_value = "v0")]
    protocol: CaptureProtocol,
    /// The codec of request bodies in tests that ask for compression.
    #[arg(long, value_enum, default_value = "gzip")]
    encoding: Encoding,
    /// The directory of the queues, one folder for each instance. Default: a new temporary directory.
    #[arg(long)]
    queue_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut folder = tempfile::Builder::new();
    folder.prefix("posthog-adapter-");
    let folder = match &arguments.queue_dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            folder.tempdir_in(dir)?
        }
        None => folder.tempdir()?,
    };
    let terms =
        Terms { protocol: arguments.protocol, encoding: arguments.encoding, folder: folder.path().to_path_buf() };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", arguments.port)).await?;
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, contract::router(Arc::new(Instances::new(terms)))).await?;
    Ok(())
}
