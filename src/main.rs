//! The `rustbalance` command.

/// Returns the memory of a burst of circuits ten seconds after it is free; glibc's allocator keeps
/// it (docs/DECISIONS.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    rustbalance::cli::main()
}
