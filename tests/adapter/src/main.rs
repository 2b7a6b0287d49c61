//! A small HTTP program that wraps the library, for PostHog's SDK compliance harness and for our own checks of the same rules.
//!
//! The harness starts it, tells it what to capture, and looks at what arrives at a mock server. No request says which protocol or
//! codec a test wants, so both are fixed for the life of the process, and `GET /health` claims what they support and nothing else.
//!
//! * `contract.rs`: the requests and answers.
//! * `instance.rs`: one client with a queue of its own, for each `test_id`; resetting one discards whatever it holds.

mod contract;
mod instance;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, ValueEnum};

use instance::{Instances, Terms};

/// What the process speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaptureProtocol {
    /// `POST /batch/`
    V0,
    /// `POST /i/v1/analytics/events`
    V1,
}

/// How bodies are compressed when a test asks for that.
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
    /// Where to listen, on 127.0.0.1; 0 takes any free port. Standard error says which.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Which of PostHog's capture endpoints is spoken to.
    #[arg(long, value_enum, default_value = "v0")]
    protocol: CaptureProtocol,
    /// How bodies are compressed when a test asks for that.
    #[arg(long, value_enum, default_value = "gzip")]
    encoding: Encoding,
    /// Where queues lie, one folder for each instance. Default: a fresh temporary directory.
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
