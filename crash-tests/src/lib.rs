//! Real processes, really killed.
