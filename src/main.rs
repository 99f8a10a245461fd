//! The `rustbalance` command.
fn main() {}
