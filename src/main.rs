//! The `rustbalance` command.

/// Gives back what a burst of circuits took, ten seconds after it is free; glibc's keeps it (docs/DECISIONS.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    rustbalance::cli::main()
}
