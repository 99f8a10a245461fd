//! Tests of the engine inside the process.
