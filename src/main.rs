//! The `rustbalance` command.

/// Returns freed memory to the system after ten seconds, which matters after a burst of circuits;
/// glibc's allocator would keep it (docs/DECISIONS.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    rustbalance::cli::main()
}
